//! A template comes from a file that was downloaded: whatever it does, it ends soon and with an
//! error that says why.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use stoker_chat_template::{ChatError, ChatTemplates, Conversation, Message};

fn render(source: &str) -> Result<String, ChatError> {
    let message = Message { role: "user", content: "A fox", ..Message::default() };
    let conversation = Conversation { messages: vec![message], ..Conversation::default() };
    ChatTemplates::from(source.to_owned()).compile().render(&conversation)
}

#[test]
fn what_does_not_end_is_stopped() {
    let rounds = "{% for a in range(99999) %}{% for b in range(99999) %}";
    let ends = "{% endfor %}{% endfor %}";
    for source in [
        format!("{rounds}{ends}"),
        format!("{rounds}x{ends}"),
        "{% macro a() %}{% for i in range(99999) %}{{ b() }}{% endfor %}{% endmacro %}\
         {% macro b() %}{% for i in range(99999) %}{{ i }}{% endfor %}{% endmacro %}{{ a() }}"
            .to_owned(),
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"
            .to_owned(),
        "{{ 'x' * 99999999 }}".to_owned(),
        "{{ ('x' * 9999).replace('x', 'y' * 9999) }}".to_owned(),
        "{% set n = namespace(l=[1]) %}{% for i in range(40) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l | tojson }}"
            .to_owned(),
        "{% set n = namespace(l=[1]) %}{% for i in range(40) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l == [] }}{{ n.l }}"
            .to_owned(),
        "{{ range(99999) | list | tojson(indent=999999999) }}".to_owned(),
        "{{ 'a'.ljust(9999999999) }}".to_owned(),
    ] {
        let result = render(&source);
        use ChatError::{Failed, TooLong, TooManySteps};
        let stopped = matches!(result, Err(TooManySteps(_) | TooLong(_) | Failed(_)));
        assert!(stopped, "{source}: {:.300}", format!("{result:?}"));
    }
}

#[test]
fn what_nests_too_deep_is_refused() {
    let brackets = |n: usize| format!("{{{{ {}{} }}}}", "[".repeat(n), "]".repeat(n));
    let conditions = |n: usize| "{% if true %}".repeat(n) + &"{% endif %}".repeat(n);
    for source in [
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}".to_owned(),
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
        "{% set n = namespace(l=[1]) %}{% for i in range(99999) %}{% set n.l = [[[[[[[[n.l]]]]]]]] %}{% endfor %}{{ n.l | tojson }}"
            .to_owned(),
        "{% set n = namespace(l=[1]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l }}"
            .to_owned(),
        "{% set n = namespace(l=[1], m=[1]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% set n.m = [n.m] %}{% endfor %}{{ n.l == n.m }}"
            .to_owned(),
        brackets(100_000),
        conditions(100_000),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(100_000)),
        format!("{{{{ 1{} }}}}", "|abs".repeat(100_000)),
        format!("{{{{ 1{} }}}}", " + 1".repeat(100_000)),
        format!("{{{{ a{} }}}}", ".b".repeat(100_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
        "x".repeat(300_000),
    ] {
        // Some end: what matters is that none overflows the stack.
        let (shown, result) = (source.chars().take(80).collect::<String>(), render(&source));
        use ChatError::{Failed, Syntax, TooManySteps};
        let refused = matches!(result, Err(Syntax(_) | Failed(_) | TooManySteps(_)));
        assert!(refused || result.is_ok(), "{shown}: {:.300}", format!("{result:?}"));
    }
}

/// The only one of its kind that takes no memory: it is left behind.
#[test]
fn what_cannot_be_stopped_is_not_started_again() {
    let source = "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}\
                  {% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}";
    let renderer = ChatTemplates::from(source.to_owned()).compile();
    for _ in 0..2 {
        assert_eq!(renderer.render(&Conversation::default()), Err(ChatError::Stuck));
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let raised = render("{{ raise_exception('Conversation roles must alternate') }}").unwrap_err();
    assert_eq!(raised, ChatError::Refused("Conversation roles must alternate".into()));
    for (source, expected) in [
        ("{% if %}", "is invalid: syntax error"),
        ("{%}", "is invalid: syntax error"),
        ("a\n{{ b.c }}", "undefined value (line 2)"),
        ("{{ nothing() }}", "unknown function"),
        ("{% include 'other' %}", "is invalid"),
        ("{{ 1 / 0 }}", "fails"),
    ] {
        let text = render(source).unwrap_err().to_string();
        assert!(text.contains(expected), "{source}: {text}");
    }
}
