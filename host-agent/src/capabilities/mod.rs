//! What an agent can do, as XML in libvirt's form.  Agents exchange it before every session.
//!
//! `<host><migration_features>` with `<live/>` and `<uri_transports>` is libvirt's; the other elements are
//! ours.  A session uses the intersection of both ends.  An agent keeps elements that it does not know: an
//! operator sees them, and they are in the intersection when both ends have them.

use std::collections::BTreeSet;

use quick_xml::escape::unescape;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer};

/// Longest document, in bytes.
const MOST: usize = 64 << 10;
/// Deepest nesting.
const DEEPEST: usize = 16;
/// The transport of streams to this agent: the URI scheme in step 0.
pub const TRANSPORT: &str = "unmoved+tls";
/// The version of the libxc stream that is sent and received.
pub const STREAM: u32 = 3;
/// The features that every migration needs.  All others are used if both ends have them.
const NEEDED: [&str; 3] = ["live", "journal", "zero_pages"];

/// An XML element; nothing in it is escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
    children: Vec<Element>,
}

/// What an agent, or a pair of them, can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    features: Element,
}

impl Capabilities {
    /// This agent's.
    #[must_use]
    pub fn ours() -> Self {
        let features = Element::new("migration_features")
            .with(Element::new("live"))
            .with(
                Element::new("uri_transports")
                    .with(Element::new("uri_transport").saying(TRANSPORT)),
            )
            .with(Element::new("abort"))
            .with(Element::new("max_downtime"))
            .with(Element::new("bandwidth"))
            .with(Element::new("zero_pages"))
            .with(Element::new("verify"))
            .with(Element::new("parallel").saying("64"))
            .with(Element::new("compression").saying("zstd"))
            .with(Element::new("journal").saying("1"))
            .with(Element::new("inquiry"))
            .with(Element::new("libxc_stream").saying(&STREAM.to_string()));
        Self { features }
    }

    /// As XML.
    #[must_use]
    pub fn to_xml(&self) -> String {
        let host = Element::new("host").with(self.features.clone());
        let capabilities = Element::new("capabilities").with(host);
        let mut writer = Writer::new(Vec::new());
        // A write to memory cannot fail.
        let _ = capabilities.write(&mut writer);
        String::from_utf8_lossy(&writer.into_inner()).into_owned()
    }

    /// Reads what another agent sent.
    ///
    /// # Errors
    /// If it is too long, too deep, no XML, or has no migration features.
    pub fn from_xml(xml: &str) -> Result<Self, String> {
        if xml.len() > MOST {
            return Err(format!(
                "the capabilities are too long: {} bytes",
                xml.len()
            ));
        }
        let root = Element::parse(xml)?;
        let found = root.find("migration_features");
        let features = found.ok_or("capabilities without migration_features")?;
        Ok(Self {
            features: features.clone(),
        })
    }

    /// What both ends can do.  Elements that only one end has are left out, known or not.  Of two numbers,
    /// the smaller one stays.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self {
            features: self.features.intersection(&other.features),
        }
    }

    /// Whether this intersection is enough to migrate a guest.
    ///
    /// # Errors
    /// What is missing, as the end of a sentence that begins with the peer's name.
    pub fn suffice(&self) -> Result<(), String> {
        if let Some(missing) = NEEDED.into_iter().find(|feature| !self.has(feature)) {
            return Err(format!(
                "cannot take part in a crash-safe live migration: it does not offer \"{missing}\""
            ));
        }
        if !self.transports().contains(TRANSPORT) {
            return Err(format!(
                "has no stream transport in common with this host, which uses {TRANSPORT}"
            ));
        }
        // Of two numbers, the smaller one stays.
        if self.number("libxc_stream") != Some(STREAM.into()) {
            return Err(format!(
                "does not support version {STREAM} of the libxc stream"
            ));
        }
        Ok(())
    }

    /// Whether the feature is there.
    #[must_use]
    pub fn has(&self, feature: &str) -> bool {
        self.features.child(feature).is_some()
    }

    /// The feature's value, if it is a number.
    #[must_use]
    pub fn number(&self, feature: &str) -> Option<u64> {
        self.features.child(feature)?.text.parse().ok()
    }

    /// The names of the agent's transports.
    #[must_use]
    pub fn transports(&self) -> BTreeSet<String> {
        let transports = self.features.child("uri_transports");
        let names = transports.into_iter().flat_map(|all| &all.children);
        names.map(|transport| transport.text.clone()).collect()
    }
}

impl Element {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    fn with(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    fn saying(mut self, text: &str) -> Self {
        text.clone_into(&mut self.text);
        self
    }

    fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    fn find(&self, name: &str) -> Option<&Self> {
        if self.name == name {
            return Some(self);
        }
        self.children.iter().find_map(|child| child.find(name))
    }

    fn intersection(&self, other: &Self) -> Self {
        let mut common = Self::new(&self.name);
        common.attributes.clone_from(&self.attributes);
        common.text = match (self.text.parse::<u64>(), other.text.parse::<u64>()) {
            (Ok(ours), Ok(theirs)) => ours.min(theirs).to_string(),
            _ => self.text.clone(),
        };
        for child in &self.children {
            // Entries of a list, such as transports, match by text; all other elements match by name.
            let is_same = |theirs: &&Self| {
                let is_number = |element: &Self| element.text.parse::<u64>().is_ok();
                theirs.name == child.name
                    && (theirs.text == child.text || (is_number(theirs) && is_number(child)))
            };
            if let Some(theirs) = other.children.iter().find(is_same) {
                common.children.push(child.intersection(theirs));
            }
        }
        common
    }

    fn parse(xml: &str) -> Result<Self, String> {
        let mut reader = Reader::from_str(xml);
        let mut open = vec![Self::new("")];
        loop {
            let event = reader.read_event().map_err(|error| error.to_string())?;
            match event {
                Event::Start(start) => {
                    if open.len() > DEEPEST {
                        return Err("capabilities are nested too deeply".to_owned());
                    }
                    open.push(Self::started(&start)?);
                }
                Event::Empty(start) => {
                    let element = Self::started(&start)?;
                    open.last_mut().ok_or("no root")?.children.push(element);
                }
                Event::End(_) => {
                    let mut element = open.pop().ok_or("no root")?;
                    element.text = element.text.trim().to_owned();
                    open.last_mut().ok_or("no root")?.children.push(element);
                }
                Event::Text(text) => open.last_mut().ok_or("no root")?.text += &text,
                Event::CData(text) => open.last_mut().ok_or("no root")?.text += &text,
                Event::GeneralRef(name) => {
                    let reference = format!("&{};", &*name);
                    let text = unescape(&reference).map_err(|error| error.to_string())?;
                    open.last_mut().ok_or("no root")?.text += &text;
                }
                Event::Eof => break,
                Event::DocType(_) => {
                    return Err("capabilities must not have a document type".to_owned());
                }
                _ => {}
            }
        }
        open.pop()
            .filter(|_| open.is_empty())
            .ok_or_else(|| "an element is not closed".to_owned())
    }

    fn started(start: &BytesStart<'_>) -> Result<Self, String> {
        let mut element = Self::new(start.name().as_ref());
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|error| error.to_string())?;
            let value = unescape(&attribute.value).map_err(|error| error.to_string())?;
            let name = attribute.key.as_ref().to_owned();
            element.attributes.push((name, value.into_owned()));
        }
        Ok(element)
    }

    fn write(&self, writer: &mut Writer<Vec<u8>>) -> std::io::Result<()> {
        let mut start = BytesStart::new(&*self.name);
        for (name, value) in &self.attributes {
            start.push_attribute((name.as_str(), value.as_str()));
        }
        if self.text.is_empty() && self.children.is_empty() {
            return writer.write_event(Event::Empty(start));
        }
        writer.write_event(Event::Start(start))?;
        writer.write_event(Event::Text(BytesText::new(&self.text)))?;
        for child in &self.children {
            child.write(writer)?;
        }
        writer.write_event(Event::End(BytesEnd::new(&*self.name)))
    }
}

#[cfg(test)]
mod tests;
