//! The partner of the guest workload on a host: drives the guest's network services, gives it
//! orders, compares clocks and fingerprints, checks disks.

use std::process::ExitCode;

use unmoved_workload::orders::Order;
use unmoved_workload::peer;
use unmoved_workload::report::Reporter;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = words.split_first() else {
        eprintln!("{}", peer::USAGE);
        return ExitCode::from(2);
    };
    let order = Order::new(name, rest.iter().map(String::as_str));
    match peer::run(&order, &Reporter::new(std::io::stdout())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("unmoved-peer: {error}");
            ExitCode::from(2)
        }
    }
}
