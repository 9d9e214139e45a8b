//! Names of nodes: what is valid, and how names relate.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::DomId;

/// Returns the directory of a domain, without a final slash.
pub fn domain_dir(domid: DomId) -> String {
    format!("/local/domain/{}", domid.0)
}

/// Resolves a name as `caller` sent it: relative names lie below its own directory.
pub fn canonical(caller: DomId, name: &[u8]) -> Vec<u8> {
    if name.starts_with(b"/") || name.starts_with(b"@") {
        return name.to_vec();
    }
    [domain_dir(caller).as_bytes(), b"/", name].concat()
}

/// Whether `name` can name a node; `max` is the most bytes it may have below a domain's directory.
pub fn is_valid(name: &[u8], max: usize) -> bool {
    name.starts_with(b"/")
        && (name == b"/" || !name.ends_with(b"/"))
        && !name.windows(2).any(|pair| pair == b"//")
        && name.len() <= max.saturating_add(domain_prefix(name))
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-/_@".contains(byte))
}

/// Bytes of `/local/domain/<number>/` at the front, or 0.  The daemon reads the number with a
/// field width of five that a sign counts towards.
fn domain_prefix(name: &[u8]) -> usize {
    const PARENT: &[u8] = b"/local/domain/";
    let Some(rest) = name.strip_prefix(PARENT) else {
        return 0;
    };
    let sign = usize::from(rest.first() == Some(&b'-'));
    let digits = rest[sign..]
        .iter()
        .take(5 - sign)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let number = sign + digits;
    if digits > 0 && rest.get(number) == Some(&b'/') {
        PARENT.len() + number + 1
    } else {
        0
    }
}

/// Returns the node above; the root is its own parent.
pub fn parent(name: &str) -> &str {
    match name.rfind('/') {
        None | Some(0) => "/",
        Some(slash) => &name[..slash],
    }
}

/// Returns the last element of a valid name.
pub fn leaf(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Returns the name of `dir`'s child `leaf`.
pub fn join(dir: &str, leaf: &str) -> String {
    if dir == "/" {
        format!("/{leaf}")
    } else {
        format!("{dir}/{leaf}")
    }
}

/// Whether `name` is `dir` or lies below it; everything, even a special name, lies below `/`.
pub fn is_within(name: impl AsRef<[u8]>, dir: impl AsRef<[u8]>) -> bool {
    let dir = dir.as_ref();
    dir == b"/"
        || name
            .as_ref()
            .strip_prefix(dir)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Whether a change reported for `changed` (the node, or everything below it) can concern `dir`.
pub fn concerns(changed: &str, dir: &str) -> bool {
    // Both ways: a change above may have removed what is below.
    is_within(changed, dir) || is_within(dir, changed)
}

#[cfg(test)]
mod tests {
    use super::{concerns, is_valid, is_within, leaf, parent};

    #[test]
    fn names_follow_the_daemon_s_grammar() {
        for good in [&b"/"[..], b"/a", b"/a/b-c_d@e/0", b"/local/domain/5/data"] {
            assert!(is_valid(good, 2048), "{good:?}");
        }
        for bad in [
            &b""[..],
            b"a",
            b"@releaseDomain",
            b"/a/",
            b"//",
            b"/a//b",
            b"/a b",
            b"/a.b",
            b"/\xff",
            b"/a\0",
        ] {
            assert!(!is_valid(bad, 2048), "{bad:?}");
        }
    }

    #[test]
    fn a_domain_s_directory_does_not_count_towards_the_length() {
        let name = |prefix: &str, len: usize| [prefix.as_bytes(), &[b'x'].repeat(len)].concat();
        assert!(is_valid(&name("/", 9), 10));
        assert!(!is_valid(&name("/", 10), 10));
        assert!(is_valid(&name("/local/domain/65535/", 10), 10));
        assert!(!is_valid(&name("/local/domain/65535/", 11), 10));
        assert!(!is_valid(&name("/local/domain/123456/", 10), 10));
        assert!(is_valid(&name("/local/domain/-123/", 10), 10));
        assert!(!is_valid(&name("/local/domain/-12345/", 10), 10));
        assert!(!is_valid(b"/local/domain/123", 10));
    }

    #[test]
    fn relations_between_names() {
        assert_eq!(parent("/a/b"), "/a");
        assert_eq!(parent("/a"), "/");
        assert_eq!(parent("/"), "/");
        assert_eq!(leaf("/a/b"), "b");
        assert!(is_within("/a/b", "/a") && is_within("/a", "/a") && is_within("@x", "/"));
        assert!(!is_within("/ab", "/a") && !is_within("/a", "/a/b"));
        assert!(concerns("/a", "/a/b") && concerns("/a/b", "/a") && !concerns("/a/b", "/a/c"));
    }
}
