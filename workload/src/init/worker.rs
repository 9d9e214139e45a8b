//! The worker: carries out orders, each in a thread of its own, and answers every one.
//!
//! An order's reports carry its tag as `re`; the last one is `done` with `ok`, and `why` if not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{control, facts, tools};
use crate::clock::{Sampler, sampler};
use crate::disk::{self, Traffic, image};
use crate::fingerprint::{boot, collect, wire};
use crate::net::{CONTROL_PORT, configure, services::Services};
use crate::orders::{BootOrders, Order, OrderError};
use crate::report::Reporter;
use crate::sys::system::Power;
use crate::unfriendly::{self, Held};
use crate::{bench, store_script, storm};

/// Orders being carried out at once; more are refused.
const MOST_ORDERS: u64 = 32;

/// Everything that runs because of some order.
pub struct Worker {
    console: Reporter,
    messages: Vec<String>,
    running: AtomicU64,
    disks: Mutex<Vec<Traffic>>,
    net: Mutex<Option<Services>>,
    clock: Mutex<Option<Sampler>>,
    held: Mutex<Held>,
}

type Answer = Result<Value, OrderError>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> OrderError {
    move |error| OrderError(format!("{what}: {error}"))
}

impl control::Obey for Worker {
    fn accept(this: &Arc<Self>, order: Order, reporter: &Reporter) {
        Self::accept(this, order, reporter);
    }
}

impl Worker {
    /// A worker with nothing to do yet, whose own reports go to `console`.
    #[must_use]
    pub fn new(console: Reporter) -> Arc<Self> {
        Arc::new(Self {
            console,
            messages: boot::kernel_messages(),
            running: AtomicU64::new(0),
            disks: Mutex::default(),
            net: Mutex::default(),
            clock: Mutex::default(),
            held: Mutex::default(),
        })
    }

    /// Reports `ready`, starts what the command line asks for (unless this is not the first
    /// worker: then its orders may be what killed the other), and takes orders for ever.
    pub fn run(console: Reporter, again: bool) -> ! {
        // Before `ready`, after which orders come: an echo would be taken for console output.
        let _ = crate::sys::tty::make_raw(&std::io::stdin());
        let this = Self::new(console);
        let mut ready = facts::facts();
        ready["again"] = again.into();
        this.console.event("ready", ready);
        let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let boot = BootOrders::from_cmdline(&cmdline);
        if !again {
            for order in boot.start {
                Self::accept(&this, order, &this.console);
            }
        }
        match boot.settings.number("heartbeat", 10, 0..=86_400) {
            Ok(0) => {}
            Ok(seconds) => this.heartbeat(Duration::from_secs(seconds)),
            Err(error) => this.console.error("settings", error),
        }
        loop {
            control::listen(std::io::stdin(), &this, &this.console);
            // The console was hung up, or there is none: others may still give orders.
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Starts to carry out an order.
    pub fn accept(this: &Arc<Self>, order: Order, reporter: &Reporter) {
        let reporter = reporter.answering(order.tag.as_deref());
        if this.running.fetch_add(1, Ordering::AcqRel) >= MOST_ORDERS {
            this.running.fetch_sub(1, Ordering::AcqRel);
            done(
                &reporter,
                &order.name,
                Err("too many orders at once".into()),
            );
            return;
        }
        let (its, answers) = (this.clone(), reporter.clone());
        let name = order.name.clone();
        let started = std::thread::Builder::new().spawn(move || {
            let result = its.carry_out(&order, &answers).map(|found| {
                if !found.is_null() {
                    answers.event(&order.name, found);
                }
            });
            done(&answers, &order.name, result.map_err(|error| error.0));
            its.running.fetch_sub(1, Ordering::AcqRel);
        });
        if let Err(error) = started {
            this.running.fetch_sub(1, Ordering::AcqRel);
            done(&reporter, &name, Err(error.to_string()));
        }
    }

    /// Waits until no order is being carried out, but not longer than `limit`.
    pub fn wait_until_idle(&self, limit: Duration) {
        let end = Instant::now() + limit;
        while self.running.load(Ordering::Acquire) != 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn carry_out(self: &Arc<Self>, order: &Order, reporter: &Reporter) -> Answer {
        match order.name.as_str() {
            "ping" => Ok(Value::Null),
            "facts" => Ok(facts::facts()),
            "status" => Ok(self.status()),
            "balloon" => Ok(facts::balloon()),
            "disk" => self.disk(order),
            "net" => self.net(order),
            "clock" => self.clock(order),
            "fingerprint" => {
                let print = collect::collect(&self.messages);
                wire::send(reporter, &print, order.word(0) != "hash");
                Ok(Value::Null)
            }
            "unfriendly" => self.unfriendly(order),
            "starve" => {
                order.allow(&["seconds"])?;
                let seconds = order.number("seconds", 10, 1..=86_400)?;
                unfriendly::starve(seconds).map_err(failed("starve"))?;
                Ok(Value::Null)
            }
            "bench" => bench::run(order),
            "store-script" => store_script::play(order, reporter),
            "storm" => storm::run(order),
            "xenstore" => tools::xenstore(order),
            "file" => tools::file(order),
            "poweroff" => tools::end(Power::Off),
            "reboot" => tools::end(Power::Restart),
            "halt" => tools::end(Power::Halt),
            "panic" => tools::sysrq("c"),
            "sysrq" => tools::sysrq(order.word(0)),
            other => Err(OrderError(format!("no order is called {other:?}"))),
        }
    }

    fn disk(&self, order: &Order) -> Answer {
        match order.word(0) {
            "start" => {
                let options = disk::Options::from_order(order)?;
                let traffic = Traffic::start(&options).map_err(failed("disk"))?;
                lock(&self.disks).push(traffic);
                Ok(Value::Null)
            }
            "status" => {
                order.allow(&[])?;
                Ok(json!({ "disks": self.disk_figures() }))
            }
            "stop" => {
                order.allow(&["dev"])?;
                let device = order.text("dev");
                let is_meant = |disk: &Traffic| device.is_none_or(|device| device == disk.device());
                // Taken out first: the final check may take long, and others may ask meanwhile.
                let mut disks = lock(&self.disks);
                let (ending, going_on): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut *disks).into_iter().partition(is_meant);
                *disks = going_on;
                drop(disks);
                let figures: Vec<Value> = ending.into_iter().map(Traffic::finish).collect();
                Ok(json!({ "disks": figures }))
            }
            "check" => {
                order.allow(&["dev"])?;
                image::check(order.required("dev")?.as_ref()).map_err(failed("disk"))
            }
            other => Err(unknown("disk", other)),
        }
    }

    fn disk_figures(&self) -> Vec<Value> {
        lock(&self.disks).iter().map(Traffic::figures).collect()
    }

    fn net(self: &Arc<Self>, order: &Order) -> Answer {
        match order.word(0) {
            "start" => {
                let options = configure::Options::from_order(order)?;
                let mut net = lock(&self.net);
                if net.is_none() {
                    // The services first: they listen on whatever addresses there will be.
                    *net = Some(Services::start().map_err(failed("net"))?);
                    control::serve(CONTROL_PORT, self).map_err(failed("net: control"))?;
                }
                drop(net);
                options.apply().map_err(failed("net"))?;
                Ok(Value::Null)
            }
            "status" => Ok(self.net_figures()),
            other => Err(unknown("net", other)),
        }
    }

    fn net_figures(&self) -> Value {
        lock(&self.net)
            .as_ref()
            .map_or(Value::Null, Services::figures)
    }

    fn clock(&self, order: &Order) -> Answer {
        let mut clock = lock(&self.clock);
        match order.word(0) {
            "start" => {
                let sampler = Sampler::start(Sampler::period(order)?).map_err(failed("clock"))?;
                *clock = Some(sampler);
                Ok(Value::Null)
            }
            "report" => {
                order.allow(&["wall", "forget"])?;
                let wall = order.text("wall").map(|text| {
                    text.parse::<i64>()
                        .map_err(|_| OrderError(format!("clock: wall={text} is no time in ns")))
                });
                let mut found = sampler::reading(wall.transpose()?);
                found["watch"] = clock.as_ref().map_or(Value::Null, Sampler::figures);
                if let Some(sampler) = clock.as_ref().filter(|_| order.text("forget").is_some()) {
                    sampler.forget_gaps();
                }
                Ok(found)
            }
            "stop" => {
                let figures = clock
                    .take()
                    .map_or(Value::Null, |sampler| sampler.figures());
                Ok(json!({ "watch": figures }))
            }
            other => Err(unknown("clock", other)),
        }
    }

    fn unfriendly(&self, order: &Order) -> Answer {
        order.allow(&["tasks"])?;
        let mut held = lock(&self.held);
        match order.word(0) {
            "start" => {
                let tasks = order.number("tasks", 1, 1..=64)?;
                held.add(tasks).map_err(failed("unfriendly"))?;
            }
            "stop" => held.release(),
            "status" => {}
            other => return Err(unknown("unfriendly", other)),
        }
        Ok(json!({ "states": held.states() }))
    }

    fn status(&self) -> Value {
        let clock = lock(&self.clock)
            .as_ref()
            .map_or(Value::Null, Sampler::figures);
        json!({
            "boot_ms": facts::facts()["boot_ms"], "disks": self.disk_figures(),
            "net": self.net_figures(), "clock": clock, "held": lock(&self.held).states(),
            "orders": self.running.load(Ordering::Relaxed),
        })
    }

    /// Reports the few figures that say whether all is well, over and over.
    fn heartbeat(self: &Arc<Self>, period: Duration) {
        let this = self.clone();
        let beat = move || {
            loop {
                std::thread::sleep(period);
                let disks = this.disk_figures();
                let sum = |name: &str| -> u64 {
                    disks.iter().filter_map(|disk| disk[name].as_u64()).sum()
                };
                let clock = lock(&this.clock)
                    .as_ref()
                    .map(|clock| clock.figures()["steps_back"].clone());
                let net = this.net_figures();
                this.console.event(
                    "alive",
                    json!({
                        "boot_ms": facts::facts()["boot_ms"],
                        "disk_errors": sum("errors"), "disk_verified": sum("verified_blocks"),
                        "clock_steps_back": clock, "tcp_open": net["tcp"]["open"],
                        "tcp_broken": net["tcp"]["broken"], "udp_received": net["udp"]["received"],
                    }),
                );
            }
        };
        if let Err(error) = std::thread::Builder::new().spawn(beat) {
            self.console.error("heartbeat", error);
        }
    }
}

fn unknown(order: &str, word: &str) -> OrderError {
    OrderError(format!("{order}: {word:?} is not one of its words"))
}

fn done(reporter: &Reporter, order: &str, result: Result<(), String>) {
    let mut body = json!({ "order": order, "ok": result.is_ok() });
    if let Err(why) = result {
        body["why"] = why.into();
    }
    reporter.event("done", body);
}
