//! The identity of a peer: the names in its verified certificate, and patterns of them.

use std::{fmt, str::FromStr};

use crate::excerpt::excerpt;

/// Maximum number of names of a certificate that are kept.
const MAX_NAMES: usize = 64;
/// Maximum number of names in a message.
const MAX_SHOWN: usize = 4;

/// The names in the certificate of a peer that an authority has signed: DNS names and URIs of its
/// SAN.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerIdentity(Vec<String>);

impl PeerIdentity {
    /// Returns the identity with these names.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().take(MAX_NAMES).collect())
    }

    /// Whether one of the names matches one of the patterns, or there are no patterns.
    pub fn matches(&self, patterns: &[IdentityPattern]) -> bool {
        let any = |pattern: &IdentityPattern| self.0.iter().any(|name| pattern.matches(name));
        patterns.is_empty() || patterns.iter().any(any)
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0[..] {
            [] => f.write_str("a certificate without names"),
            names => f.write_str(&shown(names)),
        }
    }
}

/// Returns the first names of a certificate for a message. Each is what a peer wrote.
pub(super) fn shown(names: &[impl AsRef<str>]) -> String {
    let first = names.iter().take(MAX_SHOWN).map(|name| excerpt(name.as_ref().as_bytes()));
    let mut text = first.collect::<Vec<_>>().join(", ");
    if let Some(more) = names.len().checked_sub(MAX_SHOWN).filter(|more| *more > 0) {
        text += &format!(" and {more} more");
    }
    text
}

/// A DNS name or a URI, in which `*` stands for any characters within one label of a name (between
/// dots) or one segment of a URI (between slashes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityPattern {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dns,
    Uri,
}

impl Kind {
    fn of(text: &str) -> Self {
        if text.contains("://") { Self::Uri } else { Self::Dns }
    }

    /// Character that `*` does not match.
    fn separator(self) -> char {
        match self {
            Self::Dns => '.',
            Self::Uri => '/',
        }
    }
}

impl IdentityPattern {
    /// Whether the pattern matches `name`. DNS names are compared without regard to case.
    pub fn matches(&self, name: &str) -> bool {
        if Kind::of(name) != self.kind {
            return false;
        }
        let separator = self.kind.separator();
        let lower = |text: &str| match self.kind {
            Kind::Dns => text.trim_end_matches('.').to_ascii_lowercase(),
            Kind::Uri => text.to_owned(),
        };
        let (pattern, name) = (lower(&self.text), lower(name));
        let (mut patterns, mut names) = (pattern.split(separator), name.split(separator));
        loop {
            match (patterns.next(), names.next()) {
                (None, None) => return true,
                (Some(pattern), Some(part)) if matches_part(pattern, part) => {}
                _ => return false,
            }
        }
    }
}

/// Whether `pattern` matches the whole of `part`. `*` matches one character or more, so that an
/// empty label matches nothing.
fn matches_part(pattern: &str, part: &str) -> bool {
    let mut pieces = pattern.split('*');
    // Never empty: a split has at least one piece.
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = part.strip_prefix(first) else { return false };
    let pieces: Vec<_> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        // The star before it takes the least: what is left is then as long as it can be.
        let Some(at) = rest.char_indices().nth(1).map(|(at, _)| at) else { return false };
        let Some(found) = rest[at..].find(piece) else { return false };
        rest = &rest[at + found + piece.len()..];
    }
    rest.ends_with(last) && rest.len() > last.len()
}

impl FromStr for IdentityPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let examples = "write a DNS name such as *.worker.example, or a URI such as \
                        spiffe://example/ns/stoker/sa/worker";
        let kind = Kind::of(text);
        let allowed = |c: char| match kind {
            Kind::Dns => c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '*'),
            Kind::Uri => c.is_ascii_graphic() && c != ',',
        };
        if text.is_empty() {
            return Err(format!("is empty; {examples}"));
        }
        if let Some(wrong) = text.chars().find(|&c| !allowed(c)) {
            return Err(format!("{wrong:?} is not allowed; {examples}"));
        }
        if text.trim_matches(['*', '.', '/', ':']).is_empty() {
            let every = "leave the option out to accept every certificate of the authority";
            return Err(format!("matches every name; {every}, or {examples}"));
        }
        Ok(Self { text: text.to_owned(), kind })
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<IdentityPattern>().unwrap().matches(name)
    }

    #[test]
    fn a_star_stays_within_a_label_or_segment() {
        for (pattern, name) in [
            ("worker.example", "worker.example"),
            ("Worker.Example", "worker.EXAMPLE."),
            ("*.worker.example", "w0.worker.example"),
            ("w*.example", "worker-0.example"),
            ("w*-*.example", "worker-0-1.example"),
            ("*-0.example", "worker-0.example"),
            ("spiffe://td/ns/*/sa/worker", "spiffe://td/ns/stoker/sa/worker"),
            ("spiffe://td/ns/stoker/sa/w*", "spiffe://td/ns/stoker/sa/worker.a"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("worker.example", "worker.example.evil"),
            ("worker.example", "evil.worker.example"),
            ("*.worker.example", "worker.example"),
            ("*.worker.example", "a.b.worker.example"),
            ("*.worker.example", ".worker.example"),
            ("w*.example", "w.example"),
            ("a*a.example", "aa.example"),
            ("a*b*c.example", "abc.example"),
            ("a*b*c.example", "axbc.example"),
            ("spiffe://td/ns/*/sa/worker", "spiffe://td/ns/a/b/sa/worker"),
            ("spiffe://td/ns/*/sa/worker", "spiffe://TD/ns/a/sa/worker"),
            ("spiffe://td/*", "spiffe://td/"),
            ("td", "spiffe://td"),
            ("*.td", "spiffe://a.td"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_of_everything_is_refused() {
        for bad in ["", "*", "*.*", "*://*/*", "a b", "a/b", "spiffe://a b"] {
            assert!(bad.parse::<IdentityPattern>().is_err(), "{bad:?}");
        }
        assert_eq!("*.a".parse::<IdentityPattern>().unwrap().to_string(), "*.a");
    }

    #[test]
    fn a_message_shows_few_names_and_no_control_characters() {
        let names = |count: usize| PeerIdentity::new((0..count).map(|i| format!("{i}.a")));
        assert_eq!(names(4).to_string(), "0.a, 1.a, 2.a, 3.a");
        assert_eq!(names(6).to_string(), "0.a, 1.a, 2.a, 3.a and 2 more");
        assert_eq!(PeerIdentity::default().to_string(), "a certificate without names");
        let hostile = PeerIdentity::new(["a\n\u{1b}[31mb".to_owned(), "x".repeat(10_000)]);
        let shown = hostile.to_string();
        assert!(shown.starts_with(r"a\n\u{1b}[31mb, xxx") && shown.len() < 200, "{shown}");
    }

    #[test]
    fn one_name_is_enough() {
        let peer = PeerIdentity::new(["a.b".to_owned(), "c.d".to_owned()]);
        let patterns = |texts: &[&str]| -> Vec<IdentityPattern> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        assert!(peer.matches(&patterns(&["x.y", "c.*"])));
        assert!(!peer.matches(&patterns(&["x.y"])));
        assert!(peer.matches(&[]));
        assert!(!PeerIdentity::default().matches(&patterns(&["c.*"])));
    }
}
