//! Promises of bounded templates: whatever a template holds, compiling and rendering it end soon, in little memory, with
//! a text or a named refusal.

use super::*;

fn question(text: &str) -> [(&'static str, Value); 3] {
    [
        ("messages", Value::from(vec![context! { role => "user", content => text }])),
        ("add_generation_prompt", Value::from(true)),
        ("bos_token", Value::from("<s>")),
    ]
}

fn render(source: &str) -> Result<String> {
    // The stack of a thread that serves: an overflow would abort the test.
    let work = || ChatTemplate::compile(source)?.render(question("a"), Load { messages: 1, bytes: 1 });
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn refusal(source: &str) -> String {
    let begun = Clock::system().monotonic();
    let error = render(source).expect_err(&source.chars().take(80).collect::<String>());
    assert_eq!(error.kind(), crate::error::Kind::Validation, "{error}");
    assert!(begun.elapsed() < TIME_LIMIT * 2, "{:?}: {error}", begun.elapsed());
    error.message().to_owned()
}

#[test]
fn chains_and_nests_that_would_overflow_a_stack_are_refused_before_they_are_compiled() {
    let many = 100_000 / 2;
    for (name, source) in [
        ("sum", format!("{{{{ a{} }}}}", "+a".repeat(many))),
        ("concatenation", format!("{{{{ a{} }}}}", "~a".repeat(many))),
        ("power", format!("{{{{ 1{} }}}}", "**1".repeat(many / 2))),
        ("or", format!("{{{{ a{} }}}}", " or a".repeat(many / 3))),
        ("and", format!("{{{{ a{} }}}}", " and a".repeat(many / 3))),
        ("not", format!("{{{{ {}a }}}}", "not ".repeat(many / 3))),
        ("minus", format!("{{{{ {}1 }}}}", "-".repeat(many * 2))),
        ("is", format!("{{{{ a{} }}}}", " is string".repeat(many / 6))),
        ("if", format!("{{{{ a{} }}}}", " if a else a".repeat(many / 7))),
        ("comparison", format!("{{{{ a{} }}}}", "<a".repeat(many))),
        ("filters", format!("{{{{ a{} }}}}", "|string".repeat(many / 4))),
        ("attributes", format!("{{{{ a{} }}}}", ".a".repeat(many))),
        ("items", format!("{{{{ a{} }}}}", "[0]".repeat(many / 2))),
        ("calls", format!("{{{{ a{} }}}}", "()".repeat(many))),
        ("lists", format!("{{{{ {}{} }}}}", "[".repeat(many), "]".repeat(many))),
        ("maps", format!("{{{{ {}1{} }}}}", "{1:".repeat(many / 2), "}".repeat(many / 2))),
        ("brackets", format!("{{{{ {}a{} }}}}", "(".repeat(many), ")".repeat(many))),
        ("targets", format!("{{% set {}a{} = 1 %}}", "(".repeat(many), ")".repeat(many))),
        ("ifs", format!("{}{}", "{% if a %}".repeat(6000), "{% endif %}".repeat(6000))),
        ("elifs", format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(9000))),
        ("elses", format!("{}{}", "{% if a %}{% else %}".repeat(4000), "{% endif %}".repeat(4000))),
        ("loops", format!("{}{}", "{% for a in b %}".repeat(4000), "{% endfor %}".repeat(4000))),
        ("withs", format!("{}{}", "{% with a = [a] %}".repeat(3500), "{% endwith %}".repeat(3500))),
        ("macros", format!("{}{}", "{% macro a() %}".repeat(3000), "{% endmacro %}".repeat(3000))),
        ("filter blocks", format!("{}{}", "{% filter upper %}".repeat(3000), "{% endfilter %}".repeat(3000))),
        ("assigned blocks", format!("{}{}", "{% set a %}".repeat(4000), "{% endset %}".repeat(4000))),
    ] {
        let message = refusal(&source);
        assert!(message.starts_with("The model's chat template cannot be compiled: line 1: "), "{name}: {message}");
    }
    let message = refusal(&" ".repeat(MAX + 1));
    assert!(message.contains("at most 131072 are read"), "{message}");
}

const MAX: usize = bounds::MAX_BYTES;

#[test]
fn rendering_without_end_is_ended_by_its_fuel() {
    let nest = |inner: &str| format!("{}{inner}{}", "{% for i in range(99999) %}".repeat(3), "{% endfor %}".repeat(3));
    let doubled = "{% set ns = namespace(s='xxxxxxxxxxxxxxxx', l=[1]) %}{% for i in range(60) %}";
    for source in [
        nest(""),
        nest("x"),
        nest("{% set x = i %}"),
        nest("{% if messages[0].content[-1:] == 'x' %}{% endif %}"),
        "{{ 'x' * 1000000000 }}".into(),
        "{{ [1] * 1000000000 }}".into(),
        "{{ 'x'|indent(1000000000, true) }}".into(),
        "{{ '%1000000000d'|format(1) }}".into(),
        "{{ '{:1000000000}'.format(1) }}".into(),
        "{{ [1]|tojson(indent=1000000000) }}".into(),
        "{{ [1]|batch(1000000000, 1) }}".into(),
        "{{ range(99999)|list|slice(99999)|list|tojson }}{{ range(99999)|list|tojson }}".into(),
        format!("{doubled}{{% set ns.s = ns.s ~ ns.s %}}{{% endfor %}}"),
        format!("{doubled}{{% set ns.s = ns.s.replace('x', ns.s) %}}{{% endfor %}}"),
        format!("{doubled}{{% set ns.s = ns.s.join(ns.s) %}}{{% endfor %}}"),
        format!("{doubled}{{% set ns.s = ns.s|replace('x', ns.s) %}}{{% endfor %}}"),
        format!("{doubled}{{% set ns.s = ('{{0}}{{0}}').format(ns.s) %}}{{% endfor %}}"),
        format!("{doubled}{{% set ns.l = ns.l + ns.l %}}{{% endfor %}}"),
        format!("{doubled}{{% set ns.l = [ns.l, ns.l] %}}{{% endfor %}}{{{{ ns.l }}}}"),
        format!("{doubled}{{% set ns.s = ''.join([ns.s] * 9) %}}{{% endfor %}}"),
        "{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}".into(),
        "{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = ns.l|batch(1) %}{% endfor %}".into(),
        "{% macro m(x) %}{{ m([x, x]) }}{{ m([x, x]) }}{% endmacro %}{{ m(1) }}".into(),
        "{% macro m(x) %}{% if m(x) and m(x) %}{% endif %}{% endmacro %}{{ m(1) }}".into(),
        "{% macro m() %}{{ caller() }}{% endmacro %}{% macro n() %}{% call m() %}{{ n() }}{% endcall %}{% endmacro %}{{ n() }}"
            .into(),
        "{% block a %}{{ self.a() }}{% endblock %}".into(),
    ] {
        let message = refusal(&source);
        assert!(message.contains("chat template"), "{source}: {message}");
    }
}

#[test]
fn a_value_that_keeps_its_past_is_made_plain_and_freed() {
    // Each slice would hold the one before, thousands deep.
    let source = "{% set ns = namespace(l=range(3000)|list) %}{% for i in range(2000) %}{% set ns.l = ns.l[1:] %}\
                  {% endfor %}{{ ns.l|length }}";
    let template = ChatTemplate::compile(source).unwrap();
    assert_eq!(template.render(question("a"), Load { messages: 1, bytes: 64 << 20 }).unwrap(), "1000");
    for source in [
        "{% set ns = namespace() %}{% set ns.me = ns %}",
        "{% set ns = namespace() %}{% set ns.me = [{'a': ns}] %}",
        "{% set ns = namespace() %}{% set ns.me = ns.items() %}{% set a = namespace(b=ns) %}",
        "{% set ns = namespace() %}{% for i in [ns] %}{% set ns.me = loop %}{% endfor %}",
    ] {
        assert!(refusal(source).contains("a namespace cannot hold"), "{source}");
    }
}

#[test]
fn what_cannot_be_bounded_is_refused_by_name() {
    for (source, why) in [
        ("{% include 'chat' %}", "include is not supported"),
        ("{% import 'chat' as c %}", "import is not supported"),
        ("{% from 'chat' import c %}", "from is not supported"),
        ("{% extends 'chat' %}", "extends is not supported"),
        ("{% for a in [1] recursive %}{{ loop([a]) }}{% endfor %}", "recursive loops"),
        ("{% for a in [1] %}{{ loop.changed(loop) }}{% endfor %}", "of a loop are not supported"),
        ("{% for a in [1] %}{{ loop.cycle() }}{% endfor %}", "of a loop are not supported"),
        ("{% set x | default([x], true) %}{% endset %}", "a set block with a filter"),
        ("{% set __watch = 1 %}{{ 1 }}", "__watch is reserved"),
        ("{{ debug() }}", "debug is unknown"),
    ] {
        let message = refusal(source);
        assert!(message.contains(why), "{source}: {message}");
    }
}

#[test]
fn a_rendering_that_nobody_waits_for_ends() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% if b %}{% endif %}{% endfor %}{% endfor %}";
    let template = ChatTemplate::compile(endless).unwrap();
    let asked = std::cell::Cell::new(0);
    let goes_on = || {
        asked.set(asked.get() + 1);
        if asked.get() > 2 { Err(Error::unavailable(anyhow::anyhow!("gone"))) } else { Ok(()) }
    };
    // Enough fuel for many minutes.
    let load = Load { messages: usize::MAX, bytes: usize::MAX };
    let begun = Clock::system().monotonic();
    let error = template.render_while(question("a"), load, &goes_on).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Unavailable);
    assert!(begun.elapsed() < TIME_LIMIT, "{:?}", begun.elapsed());
}

#[test]
fn hooks_leave_text_and_white_space_as_they_are() {
    for (source, text) in [
        ("{% for a in [1, 2] %}\n  {{ a }}\n{% endfor %}\n", "  1\n  2\n"),
        ("{% for a in [1, 2] -%}\n  {{ a }}\n{%- endfor %}", "12"),
        ("{% for a in [1, 2] +%}\n{{ a }}{% endfor %}", "\n1\n2"),
        ("{% macro m(a, b='y') %}\n{{ a }}{{ b }}{{ c is defined }}\n{% endmacro %}{{ m('x') }}", "xyFalse\n"),
        ("{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}{{ m(1) }}", "FalseTrue"),
        ("{% with a = [1, 2], b = (3, 4) %}\n{{ a }}{{ b[0] }}{% endwith %}", "[1, 2]3"),
        ("{% macro m() %}{{ caller(1) }}{% endmacro %}{% call(x) m() %}\n{{ x }}{% endcall %}", "1"),
        ("{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c }}", "12(1, 2)"),
        ("{% set a = 'x' if false else 'y' %}{{ a }}{% set b %}z{% endset %}{{ b }}", "yz"),
        ("{% set ns = namespace(a=1) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}", "4"),
        ("{% set m = messages + [{'role': 'x'}] %}{{ m|length }}{{ m[-1].role }}{{ m[1:][0].role }}", "2xx"),
        (
            "{% set x = missing %}{{ x is defined }}{{ {'b': 1, 'a': [none, true]}|tojson }}",
            "False{\"b\": 1, \"a\": [null, true]}",
        ),
        ("{% raw %}{% for %}{{ -{% endraw %}{# {% for %} #}", "{% for %}{{ -"),
        ("{{ messages[0].content.split('b')[0] }}{{ ' a '.strip() }}{{ 'a-b'.split('-')|join('+') }}", "aaa+b"),
    ] {
        assert_eq!(render(source).unwrap_or_else(|error| panic!("{source}: {error}")), text, "{source}");
    }
}
