//! What agents tell each other, written and read.

use super::Capabilities;

fn document(features: &str) -> String {
    format!(
        "<capabilities><host><cpu/><migration_features>{features}</migration_features></host>\
         </capabilities>"
    )
}

#[test]
fn ours_are_read_as_they_are_written() {
    let xml = Capabilities::ours().to_xml();
    assert!(xml.starts_with("<capabilities><host><migration_features><live/><uri_transports>"));
    assert_eq!(Capabilities::from_xml(&xml), Ok(Capabilities::ours()));
}

#[test]
fn what_is_not_known_is_kept() {
    let future = document("<live/><warp factor=\"9\"><core>x</core></warp>");
    let known = Capabilities::from_xml(&future).unwrap();
    assert!(known.has("warp"));
    let again = Capabilities::from_xml(&known.to_xml()).unwrap();
    assert_eq!(again, known);
    assert!(known.intersection(&known).has("warp"));
}

#[test]
fn what_is_escaped_stays_what_it_says() {
    let future = document(
        "<live/><warp factor='a\"b&lt;c&#33;'> a &amp; <![CDATA[<b>]]> c</warp><empty of=\"&quot;\"/>",
    );
    let known = Capabilities::from_xml(&future).unwrap();
    let warp = known.features.child("warp").unwrap();
    assert_eq!(warp.text, "a & <b> c");
    let attribute = ("factor".to_owned(), "a\"b<c!".to_owned());
    assert_eq!(warp.attributes, [attribute]);
    assert_eq!(Capabilities::from_xml(&known.to_xml()), Ok(known));
    for wrong in ["<live/>&nonsense;", "<live a='&nonsense;'/>"] {
        Capabilities::from_xml(&document(wrong)).unwrap_err();
    }
}

#[test]
fn only_what_both_can_do_is_used() {
    let other = document(
        "<live/><parallel>8</parallel><compression>lz4</compression><uri_transports>\
         <uri_transport>tcp</uri_transport><uri_transport>unmoved+tls</uri_transport>\
         </uri_transports>",
    );
    let other = Capabilities::from_xml(&other).unwrap();
    let both = Capabilities::ours().intersection(&other);
    assert!(both.has("live") && !both.has("abort") && !both.has("compression"));
    assert_eq!(both.number("parallel"), Some(8));
    assert_eq!(
        both.transports().into_iter().collect::<Vec<_>>(),
        ["unmoved+tls"]
    );
}

#[test]
fn what_both_can_do_must_suffice() {
    let ours = Capabilities::ours();
    assert_eq!(ours.suffice(), Ok(()));
    let but = |old: &str, new: &str| {
        let other = Capabilities::from_xml(&ours.to_xml().replace(old, new)).unwrap();
        ours.intersection(&other).suffice()
    };
    for feature in ["live", "zero_pages"] {
        assert!(
            but(&format!("<{feature}/>"), "")
                .unwrap_err()
                .contains(feature)
        );
    }
    assert!(but("unmoved+tls", "tcp").unwrap_err().contains("transport"));
    assert!(
        but("uri_transports", "no_transports")
            .unwrap_err()
            .contains("transport")
    );
    assert!(
        but("stream>3<", "stream>2<")
            .unwrap_err()
            .contains("version 3")
    );
    assert!(
        but("libxc_stream", "other")
            .unwrap_err()
            .contains("version 3")
    );
    // Who knows a later version knows this one too.
    assert_eq!(but("stream>3<", "stream>4<"), Ok(()));
}

#[test]
fn what_is_no_such_document_is_refused() {
    let deep = "<a>".repeat(100);
    let long = document(&" ".repeat(super::MOST));
    for wrong in [
        "",
        "<host/>",
        "<a><b></a>",
        "<!DOCTYPE x><a/>",
        &deep,
        &long,
    ] {
        assert!(Capabilities::from_xml(wrong).is_err());
    }
}
