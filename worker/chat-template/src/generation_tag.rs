//! The tags `{% generation %}` and `{% endgeneration %}`, with which templates mark what the
//! assistant said for training. They render what is between them.

use std::borrow::Cow;

const BEGIN: &str = "{%";
const END: &str = "%}";

/// Replaces the tags with a condition that is always true, which leaves white space as it would be.
pub(crate) fn replace(source: &str) -> Cow<'_, str> {
    let mut replaced = String::new();
    let mut copied = 0;
    for (begin, _) in source.match_indices(BEGIN) {
        // The end of `{%}` is not that of a tag: its percent sign is taken.
        let inside = &source[begin + BEGIN.len()..];
        let Some(length) = inside.find(END) else { break };
        let tag = &inside[..length];
        let name = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let instead = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        // The name is a part of the tag.
        let at = begin + BEGIN.len() + tag.find(name).unwrap_or_default();
        replaced.push_str(&source[copied..at]);
        replaced.push_str(instead);
        copied = at + name.len();
    }
    if copied == 0 {
        return Cow::Borrowed(source);
    }
    replaced.push_str(&source[copied..]);
    Cow::Owned(replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_these_tags_are_replaced() {
        let source = "{%- generation -%} a {% endgeneration +%}{% if generation %}{{ generation }}";
        let expected = "{%- if true -%} a {% endif +%}{% if generation %}{{ generation }}";
        assert_eq!(replace(source), expected);
        assert!(matches!(replace("{% if a %}{% endif %}"), Cow::Borrowed(_)));
        assert_eq!(replace("{% generation"), "{% generation");
        assert_eq!(replace("{%} generation %}"), "{%} generation %}");
        assert_eq!(replace("{%}"), "{%}");
    }
}
