//! Orders: lines such as `#7 disk start dev=/dev/xvda depth=32`, from the console, a control
//! connection or the kernel command line.
//!
//! An order is a name, words, and `key=value` options, optionally preceded by `#tag` which comes
//! back in every report it causes.  On the kernel command line `unmoved.mode=disk,net` starts
//! modes and `unmoved.disk=dev=/dev/xvda,depth=32` gives the options of one of them.  Orders come
//! from outside: whatever is not understood is an error for that order only.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

/// Longer lines than this are refused (bytes).
pub const MAX_LINE: usize = 4096;

/// Why an order can not be carried out; one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderError(pub String);

impl fmt::Display for OrderError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for OrderError {}

/// One order, parsed but not yet believed: options are checked when they are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// The first word.
    pub name: String,
    /// The other words without `=`.
    pub words: Vec<String>,
    /// The `key=value` words.
    pub options: BTreeMap<String, String>,
    /// What the answers are marked with.
    pub tag: Option<String>,
}

impl Order {
    /// Parses a line; `None` for an empty one.
    ///
    /// # Errors
    /// A line that is too long, has control characters, or a tag without an order.
    pub fn parse(line: &str) -> Result<Option<Self>, OrderError> {
        let line = line.trim();
        if line.len() > MAX_LINE {
            return Err(OrderError(format!(
                "line of {} bytes is too long",
                line.len()
            )));
        }
        if line.chars().any(char::is_control) {
            return Err(OrderError("line has control characters".into()));
        }
        let mut parts = line.split_whitespace().peekable();
        let tag = parts
            .next_if(|first| first.starts_with('#'))
            .map(|first| first[1..].to_owned());
        let Some(name) = parts.next() else {
            return match tag {
                None => Ok(None),
                Some(_) => Err(OrderError("a tag without an order".into())),
            };
        };
        let mut order = Self::new(name, parts);
        order.tag = tag;
        Ok(Some(order))
    }

    /// An order from its name and already separated words.
    pub fn new<'a>(name: &str, parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut order = Self {
            name: name.to_owned(),
            ..Self::default()
        };
        for part in parts {
            match part.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    order.options.insert(key.to_owned(), value.to_owned());
                }
                _ => order.words.push(part.to_owned()),
            }
        }
        order
    }

    /// The n-th word after the name, or "".
    #[must_use]
    pub fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    /// An option's text.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    /// An option that the order cannot do without.
    ///
    /// # Errors
    /// If it is missing.
    pub fn required(&self, key: &str) -> Result<&str, OrderError> {
        self.text(key)
            .ok_or_else(|| OrderError(format!("{}: option {key}= is missing", self.name)))
    }

    /// A number, with an optional suffix k, M or G (powers of 1024), within `range`.
    ///
    /// # Errors
    /// If it is no number or out of range.
    pub fn number(
        &self,
        key: &str,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> Result<u64, OrderError> {
        let Some(text) = self.text(key) else {
            return Ok(default);
        };
        let value = parse_size(text)
            .ok_or_else(|| OrderError(format!("{}: {key}={text} is not a number", self.name)))?;
        if range.contains(&value) {
            Ok(value)
        } else {
            Err(OrderError(format!(
                "{}: {key}={text} is not within {}..={}",
                self.name,
                range.start(),
                range.end()
            )))
        }
    }

    /// A switch: `key=1` or `key=0`.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, OrderError> {
        Ok(self.number(key, u64::from(default), 0..=1)? == 1)
    }

    /// Refuses options that nobody would look at, so that a misspelt one does not go unnoticed.
    ///
    /// # Errors
    /// Names the first unknown option.
    pub fn allow(&self, known: &[&str]) -> Result<(), OrderError> {
        match self
            .options
            .keys()
            .find(|key| !known.contains(&key.as_str()))
        {
            None => Ok(()),
            Some(key) => Err(OrderError(format!("{}: unknown option {key}=", self.name))),
        }
    }
}

/// A number with an optional suffix k, M or G; `None` if it is not one or overflows.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.chars().last()? {
        'k' | 'K' => (&text[..text.len() - 1], 1 << 10),
        'm' | 'M' => (&text[..text.len() - 1], 1 << 20),
        'g' | 'G' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// What the kernel command line asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootOrders {
    /// `NAME start …` for each of `unmoved.mode=`'s names, in their order.
    pub start: Vec<Order>,
    /// Settings that are no modes (`unmoved.heartbeat=`, `unmoved.loglevel=`).
    pub settings: Order,
}

/// Settings of the program itself rather than of a mode.
const SETTINGS: [&str; 2] = ["heartbeat", "loglevel"];

impl BootOrders {
    /// Reads the `unmoved.` words of a kernel command line.  Never fails: a mode that makes no
    /// sense fails later, as an order does.
    #[must_use]
    pub fn from_cmdline(cmdline: &str) -> Self {
        let mut modes = Vec::new();
        let mut options: BTreeMap<&str, &str> = BTreeMap::new();
        let mut settings = Order::new("settings", []);
        let ours = cmdline
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("unmoved.")?.split_once('='));
        for (key, value) in ours {
            if key == "mode" {
                modes.extend(value.split(',').filter(|mode| !mode.is_empty()));
            } else if SETTINGS.contains(&key) {
                settings.options.insert(key.into(), value.into());
            } else {
                options.insert(key, value);
            }
        }
        let start = modes
            .into_iter()
            .map(|mode| {
                let given = options.get(mode).copied().unwrap_or_default();
                let words = given.split(',').filter(|word| !word.is_empty());
                Order::new(mode, std::iter::once("start").chain(words))
            })
            .collect();
        Self { start, settings }
    }
}

#[cfg(test)]
mod tests {
    use super::{BootOrders, Order, parse_size};
    use proptest::prelude::proptest;

    #[test]
    fn an_order_has_tag_words_and_options() {
        let order = Order::parse("#a7 disk start dev=/dev/xvda size=1M odd=\n")
            .expect("parses")
            .expect("not empty");
        assert_eq!(order.tag.as_deref(), Some("a7"));
        assert_eq!((order.name.as_str(), order.word(0)), ("disk", "start"));
        assert_eq!(order.number("size", 0, 1..=1 << 30), Ok(1 << 20));
        assert_eq!(order.text("odd"), Some(""));
        assert!(order.number("odd", 0, 0..=9).is_err());
        assert!(order.number("size", 0, 0..=9).is_err());
        assert!(order.allow(&["dev", "size"]).is_err());
        assert_eq!(Order::parse("  \r\n"), Ok(None));
        assert!(Order::parse("#only").is_err());
    }

    #[test]
    fn the_command_line_starts_modes_in_order() {
        let boot = BootOrders::from_cmdline(
            "root=/dev/ram0 unmoved.mode=net,disk,clock quiet unmoved.disk=dev=/dev/xvda,depth=8 \
             unmoved.net=ip=192.0.2.10/24 unmoved.heartbeat=3 unmoved=odd unmoved.=x",
        );
        let names: Vec<_> = boot.start.iter().map(|order| order.name.as_str()).collect();
        assert_eq!(names, ["net", "disk", "clock"]);
        assert_eq!(boot.start[0].text("ip"), Some("192.0.2.10/24"));
        assert_eq!(boot.start[1].number("depth", 1, 1..=64), Ok(8));
        assert_eq!(boot.start[2].words, ["start"]);
        assert_eq!(boot.settings.number("heartbeat", 10, 0..=100), Ok(3));
    }

    #[test]
    fn sizes_do_not_overflow() {
        assert_eq!(parse_size("4k"), Some(4096));
        assert_eq!(parse_size("18446744073709551615G"), None);
        assert_eq!(parse_size("é"), None);
        assert_eq!(parse_size(""), None);
    }

    proptest! {
        #[test]
        fn odd_input_is_never_fatal(line in ".{0,200}") {
            let _ = Order::parse(&line);
            let _ = BootOrders::from_cmdline(&line);
        }
    }
}
