#!/usr/bin/env python3
"""Renders the snippets below with Python's jinja2, set up as transformers sets it up, to oracle.json.

Needs jinja2 3.1: python3 -m venv target/jinja && target/jinja/bin/pip install jinja2==3.1.6
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

NOW = datetime.datetime(2024, 7, 26, 9, 5, 3)

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a <place> & \"time\"",
        "parameters": {
            "type": "object",
            "properties": {"items": {"type": "array", "items": {"type": "string"}}, "höhe": {"type": "number"}},
            "required": ["items"],
        },
    },
}
VARIABLES = {
    "messages": [
        {"role": "system", "content": "  You are terse. "},
        {"role": "user", "content": "A fox\nran"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi!"},
        {"role": "user", "content": "Why? It's \"so\" <b>&</b>"},
    ],
    "tools": [TOOL],
    "none": None,
    "yes": True,
    "number": 3,
    "half": 0.5,
    "floats": [1.0, 1e16, 1e15, 1e-5, 0.0001, 123456.789, 1e22, -2.5],
    "nested": {"b": [1, 2, {"c": None}], "a": {"x": True, "y": "z"}, "list": []},
    "words": ["one", "Two", "three", "two"],
    "people": [{"name": "Ann", "age": 3}, {"name": "bob", "age": 5}, {"name": "Cy", "age": 3}],
    "text": "The quick brown fox",
    "empty": "",
    "bos_token": "<s>",
}

SNIPPETS = r"""
{{ none }} {{ yes }} {{ number }} {{ half }} {{ missing }}|
{{ nested }} {{ words }} {{ (1, 'a') }} {{ [1, 'it\'s'] }}
{{ floats[3] }} {{ floats[0] }} {{ 1e16 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 2 ** -1 }}
{{ none ~ yes ~ number ~ half ~ words }}
{{ floats | tojson }}
{{ nested | tojson }} {{ nested | tojson(indent=2) }}
{{ nested | tojson(indent=4, sort_keys=true) }} {{ nested | tojson(separators=(',', ':')) }}
{{ tools | tojson }} {{ tools[0] | tojson(ensure_ascii=true) }}
{{ tools | tojson(indent=none) }} {{ [] | tojson(indent=2) }} {{ {} | tojson }} {{ [[], {}] | tojson(indent=1) }}
{{ "\u007f\u0001 é 😀" | tojson }} {{ "é 😀" | tojson(ensure_ascii=True) }}
{{ missing | tojson }}
{{ {1: 2, true: 3, none: 4} | tojson }}
{{ tools[0].function.parameters.properties.items() | list | length }}
{% for name, value in tools[0].function.parameters.properties.items() %}{{ name }}={{ value.type }};{% endfor %}
{% for name, value in tools[0]['function']['parameters']['properties'] | items %}{{ name }};{% endfor %}
{{ tools[0].function.parameters.properties['items'].type }}
{% for k in nested %}{{ k }},{% endfor %} {{ nested.keys() | list }} {{ nested.values() | list }}
{{ nested.get('a') }} {{ nested.get('zz') }} {{ nested.get('zz', 'd') }} {{ nested['zz'] is defined }}
{{ 'a' in nested }} {{ 'one' in words }} {{ 'qui' in text }} {{ 'zz' not in text }}
{{ messages | length }} {{ messages[-1].role }} {{ messages[1:] | length }} {{ messages[::-1][0].role }} {{ text[4:9] }} {{ text[::-1] }} {{ text[-3:] }}
{% set ns = namespace(found=false, count=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.found = true %}{% set ns.count = ns.count + 1 %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.count }}
{% for m in messages %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.length }};{% endfor %}
{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else '-' }}>{{ m.role }}>{{ loop.nextitem.role if loop.nextitem is defined }};{% endfor %}
{% for m in messages %}{{ loop.cycle('odd', 'even') }} {{ loop.changed(m.role) }};{% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% else %}none{% endfor %}
{% for m in [] %}x{% else %}nothing{% endfor %}
{% for m in messages %}{% if loop.index == 3 %}{% break %}{% endif %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}
{{ text.upper() }} {{ text.lower() }} {{ text.title() }} {{ 'aBC'.capitalize() }} {{ 'aBC'.swapcase() }}
{{ '  x '.strip() }}|{{ '  x '.lstrip() }}|{{ '  x '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xyaxy'.lstrip('yx') }}|{{ '\n\na\n'.strip('\n') }}
{{ text.split() }} {{ text.split(' ', 1) }} {{ text.split('q') }} {{ 'a  b'.split(' ') }} {{ ''.split() }} {{ ''.split(',') }}
{{ 'a,b,c'.split(',', maxsplit=1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a b c'.rsplit(None, 1) }} {{ ' a  b  c '.split(None, 1) }}
{{ messages[2].content.split('</think>')[-1].lstrip('\n') }} {{ messages[2].content.split('</think>')[0].rstrip('\n').split('<think>')[-1] }}
{{ text.startswith('The') }} {{ text.endswith(('x', 'y')) }} {{ text.startswith(('a', 'b')) }} {{ text.find('quick') }} {{ text.find('zz') }} {{ text.rfind('o') }} {{ text.index('o') }} {{ text.count('o') }}
{{ text.replace('quick', 'slow') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ ', '.join(words) }} {{ '-' * 5 }} {{ 5 * '-' }} {{ 'a' + 'b' }} {{ [1] + [2] }} {{ [0] * 3 }}
{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'a'.partition('=') }}
{{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'a'.ljust(3, '.') }} {{ 'a'.rjust(3) }} {{ 'ab'.center(5, '*') }} {{ 'a'.center(4, '*') }}
{{ '12'.isdigit() }} {{ '1a'.isalnum() }} {{ 'ab'.isalpha() }} {{ ' '.isspace() }} {{ 'A'.isupper() }} {{ 'a'.islower() }} {{ 'Ab Cd'.istitle() }} {{ ''.isdigit() }}
{{ 'a\nb\r\nc'.splitlines() }} {{ 'Ab'.casefold() }} {{ '{} and {name}'.format('a', name='b') }} {{ '%s' | format('x') }}
{{ words | join(', ') }} {{ words | first }} {{ words | last }} {{ words | length }} {{ words | reverse | list }} {{ words | sort }} {{ words | sort(reverse=true) }} {{ words | unique | list }}
{{ people | map(attribute='name') | list }} {{ people | selectattr('age', 'equalto', 3) | map(attribute='name') | join(',') }} {{ people | rejectattr('age', '>', 3) | list | length }}
{{ people | groupby('age') | length }} {{ people | sum(attribute='age') }} {{ people | sort(attribute='name') | map(attribute='name') | list }} {{ people | max(attribute='age') }}
{{ words | map('upper') | list }} {{ words | select('equalto', 'one') | list }} {{ words | reject('in', ['one']) | list }} {{ [0, 1, '', 'a', none] | select | list }}
{{ nested | dictsort }} {{ words | batch(2) | list }} {{ words | slice(2) | list }}
{{ missing | default('d') }} {{ empty | default('d') }}| {{ empty | default('d', true) }} {{ none | d('x') }} {{ none | default('x', boolean=true) }}
{{ ' a ' | trim }} {{ 'aXa' | trim('a') }} {{ 'good morning' | title }} {{ 'good' | capitalize }} {{ 'a-b' | replace('-', '+') }} {{ text | upper | lower }} {{ text | wordcount }}
{{ '3' | int + 1 }} {{ 'x' | int(7) }} {{ '1.5' | float }} {{ 3.7 | int }} {{ 3.14159 | round(2) }} {{ 2.5 | round }} {{ -3 | abs }} {{ 3 | string + 'a' }} {{ 'abc' | list }} {{ yes | int }}
{{ 'a\nb' | indent(2) }} {{ 'a\nb' | indent(2, true) }} {{ 'a\n\nb' | indent(width=4, first=True) }}
{{ messages is iterable }} {{ messages is sequence }} {{ messages is mapping }} {{ nested is mapping }} {{ text is string }} {{ text is iterable }} {{ text is sequence }} {{ number is number }} {{ number is integer }} {{ half is float }} {{ yes is boolean }} {{ yes is number }}
{{ none is none }} {{ missing is defined }} {{ missing is undefined }} {{ missing is none }} {{ none is defined }} {{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 1 is eq 1 }} {{ 'a' is in ['a'] }} {{ yes is true }} {{ yes is sameas true }} {{ range is callable }} {{ text is lower }}
{{ range(3) | list }} {{ range(1, 7, 2) | list }} {{ range(3, 0, -1) | list }} {{ dict(a=1, b='x') }} {{ dict(a=1) | tojson }}
{{ 1 < 2 < 3 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ not yes }} {{ yes and number }} {{ empty or 'x' }} {{ none or 0 }} {{ 'x' if yes }} {{ 'x' if not yes }}| {{ 'a' if empty else 'b' }}
{{ (1, 2) + (3,) }} {{ [1, 2] == [1, 2] }} {{ {'a': 1} == {'a': 1} }} {{ 1 in (1, 2) }} {{ [] == false }} {{ 1 == true }} {{ '1' == 1 }}
{% macro greet(name, greeting='Hey') %}{{ greeting }} {{ name }}!{% endmacro %}{{ greet('Ann') }} {{ greet('Bob', greeting='Hi') }} {{ greet(greeting='Yo', name='C') }}
{% macro wrap() %}[{{ caller() }}]{% endmacro %}{% call wrap() %}inside{% endcall %}
{% macro each(items) %}{% for i in items %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(i) each([1, 2]) %}<{{ i }}>{% endcall %}
{% macro tree(value, level=0) %}{% if value is mapping %}{% for k, v in value.items() %}{{ '  ' * level }}{{ k }}: {{ tree(v, level + 1) }}{% endfor %}{% else %}{{ value }};{% endif %}{% endmacro %}{{ tree(nested) }}
{% set content %}a{{ number }}b{% endset %}{{ content | upper }} {% set x, y = 1, 2 %}{{ x }}{{ y }} {% set a = [] %}{{ a }}
{% filter upper %}text {{ number }}{% endfilter %} {% with z = 5 %}{{ z }}{% endwith %}{{ z }} {% raw %}{{ raw }}{% endraw %} {# a comment #}end
{% if number > 2 and number < 5 %}yes{% elif number == 2 %}two{% else %}no{% endif %}
{%- for m in messages -%}   {{ m.role }}   {%- endfor -%}
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y') }} {{ strftime_now('%A, %B %d, %Y') }} {{ strftime_now('%H:%M:%S') }} {{ strftime_now('%-d/%-m/%y') }} {{ strftime_now('%j %I %p %%') }}
{% set date = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}{{ date }}
{{ raise_exception('Roles must alternate') }}
{{ missing.attribute }}
{{ missing() }}
{{ 'a' + 1 }}
{{ none.x }}|{{ number.x }}|{{ nested.zz }}|{{ text.zz }}
{{ nested.zz.deeper }}
{{ words[10] }}|{{ messages[0].nothing }}|{{ nested['a']['x'] }}|{{ nested.a.y }}|{{ nested['b'][2].c }}
{{ "a" "b" }} {{ 'tab\there' }} {{ 'quote\'s' }} {{ "back\\slash" }} {{ '\x41\u00e9' }}
{% for k, v in nested | dictsort %}{{ k }}={{ v }};{% endfor %} {% for a, b in [(1, 2), (3, 4)] %}{{ a + b }},{% endfor %}
{% for row in [[1, [2, 3]], [4, []]] recursive %}{% if row is iterable %}({{ loop(row) }}){% else %}{{ row }}{% endif %}{% endfor %}
{% set counter = namespace(value=0) %}{% for i in range(3) %}{% set counter.value = counter.value + i %}{% endfor %}{{ counter.value }} {% set outer = 1 %}{% for i in [1] %}{% set outer = 2 %}{% endfor %}{{ outer }}
{%- generation -%} said {%- endgeneration -%}
{% generation %}{{ messages[2].content }}{% endgeneration %}|
{{ bos_token + 'x' }} {{ bos_token ~ number }} {{ (number | string).zfill(2) }} {{ number is string }} {{ (text | string) is string }}
{{ messages | map(attribute='role') | join(' ') }} {{ messages | selectattr('role', '==', 'user') | list | last }} {{ (messages | first).role }} {{ messages | map(attribute='content') | map('length') | sum }}
{{ 'a' if (messages[0].role == 'system') and messages[0]['content'] is string else 'b' }} {{ ('user' == messages[1]['role']) != (1 % 2 == 0) }}
{{ words | tojson | length }} {{ (nested | tojson).replace('"', "'") }} {{ text | truncate(10) }} {{ text | truncate(12, true, '~', leeway=0) }} {{ text | truncate(length=18) }} {{ 'a b' | urlencode }} {{ '<b>' | e }} {{ '<b>' | safe }} {{ '<b>' | escape }}
{{ nested | items | list }} {{ words | min }} {{ [3, 1] | max }} {{ text | list | length }} {{ 'x' | center(5) }}| {{ 1000000 | filesizeformat }}
{{ [1, 2, 3] | map('string') | list }} {{ [[1, 2], [3]] | sum(start=[]) }} {{ '%.2f' | format(3.14159) }} {{ 'a' * 0 }}|
{{ namespace(a=1).a }} {{ cycler('a', 'b').next() }} {{ joiner(', ')() }}|
{{ text.__class__ }}|
{{ [].append(1) }}|
{{ true }} {{ True }} {{ false }} {{ False }} {{ None }} {{ 1_000 }} {{ 0x10 }} {{ 1.5e3 }} {{ 10 ** 20 }} {{ 3 - -2 }} {{ -2 ** 2 }}
{{ messages[0]['role'] == 'system' and messages[0]['content'] | trim or 'default' }} {{ number if number else 'x' }} {{ (messages | length) - 1 }} {{ messages | length - 1 }} {{ loop is defined }}
{%- set tool_names = [] %}{% for t in tools %}{% set tool_names = tool_names + [t.function.name] %}{% endfor %}{{ tool_names }} {{ nested.list is defined and nested.list }} {{ nested.copy() }} {{ words.copy() }} {{ words.index('Two') }} {{ words.count('one') }}
{% set s = 'x' %}{% if s is not none and s is defined %}{{ s }}{% endif %}{% if not (s == 'y') %}!{% endif %}{% if s in ['x', 'y'] %}in{% endif %}
{{ 'line one\nline two'.split('\n') | map('trim') | join('|') }} {{ 'a;b' | replace(';', '\n') }} {{ "%s-%s" | format("a", "b") }} {{ 'AbC' | lower | list | unique | list }}
{{ nested.items() | list }} {{ nested.items() | map('first') | list }} {{ [(1, 'x')] | list }} {{ [1, 2, 3][1:] }} {{ (1, 2, 3)[:2] }} {{ 'héllo'[1] }} {{ 'héllo' | length }} {{ 'héllo'.find('l') }}
{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}x{% endmacro %}{{ a() }}
{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}
{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}
{% macro next(state) %}{% set state.i = state.i + 1 %}{{ state.i }}{% endmacro %}{% set s = namespace(i=0) %}{{ next(s) }}{{ next(s) }}{{ s.i }}
{% macro open(tag, attrs=[]) %}<{{ tag }}{% for attr in attrs %} {{ attr[0] }}="{{ attr[1] }}"{% endfor %}>{% endmacro %}{{ open('a', [('k', 'v'), ('n', 1)]) }}{{ open('b') }}
{% set d = {0: 1, 512: 2, 16384: 3} %}{% for k, v in d | dictsort %}{{ k }}={{ v }};{% endfor %}{{ d[16384] }}{{ d[0] }}
{% for m in messages %}{% if m is mapping %}{% if m.role == 'user' %}{% break %}{% endif %}{{ m.role }}{% endif %}{% endfor %}
{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m.role] %}{% endfor %}{{ ns.l | join(',') }}
{% for i in range(3, -1, -1) %}{{ i }}{% endfor %} {{ range(messages | length - 1, -1, -1) | list }}
{% set m = messages[0] %}{% set c = m.content if m.content is string else '' %}{{ c | trim }} {{ ' ' ~ (m.nothing or "") }}|
{% for name, spec in tools[0].function.parameters.properties.items() %}{{ name }}: {{ spec.type }}{% if not loop.last %}, {% endif %}{% endfor %}
{{ nested | tojson | string }} {{ (1 if yes else 2) | string }} {{ none | string }} {{ yes | string }} {{ [1, none] | string }}
{% if 'x' in nested.a %}in{% endif %}{% if 'role' not in messages[0] %}no{% else %}has{% endif %}
{% set thinking = thinking | default(true) %}{{ thinking }} {% if not tools is defined or tools is none %}none{% else %}some{% endif %}
{{ message | default({}) }} {{ messages[0].get('content', '') | trim }} {{ messages[0].get('tool_calls', []) | length }}
{% for m in messages[1:] %}{{ loop.index0 }}{{ messages[loop.index0].role }},{% endfor %}
{% set content = messages[2].content %}{% if '</think>' in content %}{% set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{{ reasoning }}|{{ content }}{% endif %}
{{ '\n'.join(words) }} {{ words | map('length') | list }} {{ "%s" | format(words[0]) }} {{ words | map('replace', 'o', '0') | list }}
{{ tools | map(attribute='function.name') | list }} {{ tools | selectattr('function.name', 'defined') | list | length }} {{ tools | map(attribute='nothing', default='d') | list }}
{% set x %}{{ number }}{% endset %}{{ x is string }} {{ x + 'a' }} {% set x = x | int %}{{ x + 1 }}
{% if messages | selectattr('role', 'equalto', 'system') | list | length > 0 %}sys{% endif %} {{ (messages | selectattr('role', 'equalto', 'user') | list)[-1].content }}
{% set first_user = messages | selectattr("role", "equalto", "user") | first %}{{ first_user.content }} {{ messages | rejectattr('role', 'in', ['system', 'user']) | map(attribute='role') | list }}
{{ {'a': 1}.items() | list }} {{ {'b': 1, 'a': 2} | dictsort }} {{ {'b': 1, 'a': 2} | dictsort(by='value') }} {{ {'b': 1, 'a': 2} | dictsort(reverse=true) }}
{{ "a,b;c" | replace(",", ";") }} {{ "abc"[1:] }} {{ "abc"[:-1] }} {{ "abc"[-1] }} {{ "abc"[::2] }} {{ words[::2] }} {{ words[:2] + words[-1:] }}
{{ 5 // 2 * 2 + 5 % 2 }} {{ (2 + 3) * 4 }} {{ 7 / 2 | round }} {{ (7 / 2) | round(0, 'floor') }} {{ (7 / 2) | round(method='ceil') | int }} {{ 1 / 3 }}
{{ not none }} {{ none == false }} {{ '' == none }} {{ [] or 'e' }} {{ {} and 1 }} {{ 0 or none }} {{ 'a' and 'b' }} {{ 1 if none else 2 }}
{%- for message in messages -%}{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}{{- role -}}{%- endfor -%}
{{ "{:>5}|{:<5}|{:^5}|{:05.1f}".format("a", "b", "c", 2.5) }} {{ "{0}{1}{0}".format("a", "b") }}
{{ "a\tb" | tojson }} {{ "</script>" | tojson }} {{ 'it''s' }} {{ 1.0 | tojson }} {{ 1e100 | tojson }} {{ 12345678901234567890 | tojson }} {{ -0.0 | tojson }}
{% autoescape false %}{{ '<' }}{% endautoescape %} {% for a in {'k': 1} %}{{ a }}{% endfor %} {% for a in 'abc' %}{{ a }}-{% endfor %}
{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }} {{ ns.b is defined }} {{ namespace({'q': 1}).q }}
{{ '<|im_start|>' ~ messages[0].role ~ '\n' ~ messages[0].content | trim ~ '<|im_end|>' ~ '\n' }}
{{ messages[0].role.upper() ~ messages[0]["content"].strip()[:3] }} {{ (messages[0].content | trim).split(' ')[0] }} {{ messages[0].content.strip().endswith('.') }}
""".strip("\n")


# White space over several lines.
BLOCKS = [
    "  {% if yes %}\n  indented\n  {% endif %}\ntail",
    "{% for m in messages %}\n{{ m.role }}: {{ m.content | trim }}\n{% endfor %}\n",
    "    {%+ if yes %} kept {% endif %}\n",
    "{%- if yes %}\na\n{%- else %}\nb\n{%- endif %}\nc\n\n",
    "a  {#- comment -#}  b\n  {# line #}\nc\n",
    "{% for w in words %}\n  {%- if loop.first %}\n  {{- w }}\n  {%- else %}\n, {{ w -}}\n  {%- endif %}\n{%- endfor %}.",
    "{%- macro m(x) -%}\n  {{ x }}\n{%- endmacro -%}\n{{ m(1) }}\n{{ m(2) }}",
    "{{ 'a' }}\n{{ 'b' }}  \n  {{- 'c' }}",
    "x {%- set a = 1 %}\n\n{% set b = 2 -%}\n\n y",
]


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller):
        return caller()


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: NOW.strftime(format)
    return env


def render(source):
    try:
        return {"rendered": environment().from_string(source).render(**VARIABLES)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


cases = [{"template": source, **render(source)} for source in SNIPPETS.split("\n") + BLOCKS]
oracle = {
    "oracle": f"jinja2 {jinja2.__version__}",
    "now": int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp()),
    "variables": VARIABLES,
    "cases": cases,
}
path = pathlib.Path(__file__).with_name("oracle.json")
path.write_text(json.dumps(oracle, indent=1, ensure_ascii=False) + "\n")
print(len(cases), sum("error" in case for case in cases))
