"""Tags in a prompt: what they mean, what is refused, and that they survive being written and read."""
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypernetworks.errors import HypernetworkError
from hypernetworks.prompt import ActiveNetwork, ConditionSource, extract, tag

numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(min_size=1, max_size=30).filter(lambda name: name == name.strip() and name and not set(name) & set("<>:"))
sources = st.none() | st.one_of(
    st.builds(ConditionSource, st.just("text"), st.text(max_size=30) | st.text(alphabet="<>:#%=2 \n\\F\u2003", max_size=12)),
    st.builds(ConditionSource, st.just("reference"), st.text(alphabet="0123456789abcdef", min_size=10, max_size=10)),
    st.builds(ConditionSource, st.just("task"), st.text(min_size=1, max_size=20)),
)


@st.composite
def networks(draw):
    start, end = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    strengths = [draw(st.sampled_from([1.0, 0.0, 0.8, -0.3]) | numbers) for _ in range(6)]
    generated = {"condition": draw(sources), "second": draw(sources), "blend": draw(st.sampled_from([0.0, 0.5]) | st.floats(0, 1))}
    return ActiveNetwork(draw(names), *strengths, start=start, end=end, uncond=draw(st.sampled_from([None, True, False])), **generated)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("<hypernet:oil paint>", ActiveNetwork("oil paint")),
        ("<hypernet:oil:0.8>", ActiveNetwork("oil", 0.8)),
        ("<HyperNet:oil:-.5>", ActiveNetwork("oil", -0.5)),
        ("<hypernet:oil:1:0.5>", ActiveNetwork("oil", 1, k=0.5)),
        ("<hypernet:oil:0.9:0.5:0.25>", ActiveNetwork("oil", 0.9, k=0.5, v=0.25)),
        ("<hypernet:oil:v=0.5:k=2>", ActiveNetwork("oil", k=2, v=0.5)),
        ("<hypernet:oil:in=0:mid=0.5:out=1e-1>", ActiveNetwork("oil", input=0, middle=0.5, output=0.1)),
        ("<hypernet:oil:0.7:start=0.2:END=0.6:uncond=0>", ActiveNetwork("oil", 0.7, start=0.2, end=0.6, uncond=False)),
        ("< hypernet : oil : 2 : uncond = yes >", ActiveNetwork("oil", 2, uncond=True)),
        ("<hypernet:a=b:k=0>", ActiveNetwork("a=b", k=0)),
        ("<hypernet:стиль 水彩:0.5>", ActiveNetwork("стиль 水彩", 0.5)),
        ("<hypernet:any:text=ink, 50% grey>", ActiveNetwork("any", condition=ConditionSource("text", "ink, 50% grey"))),
        ("<hypernet:any:text=a%3A b=c>", ActiveNetwork("any", condition=ConditionSource("text", "a: b=c"))),
        ("<hypernet:any:0.6:text=>", ActiveNetwork("any", 0.6, condition=ConditionSource("text", ""))),
        ("<hypernet:any:REF=01234ABCDE>", ActiveNetwork("any", condition=ConditionSource("reference", "01234abcde"))),
        ("<hypernet:any:task=night>", ActiveNetwork("any", condition=ConditionSource("task", "night"))),
        ("<hypernet:any:task2=night>", ActiveNetwork("any", second=ConditionSource("task", "night"), blend=0.5)),
        (
            "<hypernet:any:blend=0.3:ref=0123456789:text2=ink>",
            ActiveNetwork("any", condition=ConditionSource("reference", "0123456789"), second=ConditionSource("text", "ink"), blend=0.3),
        ),
        ("<hypernet:any:text=ink:blend=0.3>", ActiveNetwork("any", condition=ConditionSource("text", "ink"), blend=0.3)),
    ],
)
def test_a_tag_means(text, meaning):
    assert extract(text) == ("", [meaning])


def test_tags_leave_the_prompt_and_keep_their_order():
    prompt, found = extract("a (red:1.2) star <hypernet:b:0.5>, <lora:x:1> [a|b] <hypernet:a>")
    assert prompt == "a (red:1.2) star , <lora:x:1> [a|b] "
    assert found == [ActiveNetwork("b", 0.5), ActiveNetwork("a")]


@pytest.mark.parametrize(
    "text", ["<lora:x:nonsense>", "<hypernet>", "<hypernet:open", "hypernet:x>", "a < b > c", "<hypernets:x>", "((<<>>))", "<:hypernet:x>", ""]
)
def test_other_text_is_left_untouched(text):
    assert extract(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<hypernet:>", "no name"),
        ("<hypernet: :0.5>", "no name"),
        ("<hypernet:x:strong>", "strength cannot be 'strong'"),
        ("<hypernet:x:>", "strength cannot be ''"),
        ("<hypernet:x:nan>", "strength cannot be 'nan'"),
        ("<hypernet:x:inf>", "strength cannot be 'inf'"),
        ("<hypernet:x:1e999>", "strength cannot be inf"),
        ("<hypernet:x:1_0>", "strength cannot be '1_0'"),
        ("<hypernet:x:٣>", "strength cannot be"),
        ("<hypernet:x:1:1:1:1>", "without a name"),
        ("<hypernet:x:k=>", "k cannot be ''"),
        ("<hypernet:x:size=1>", "no argument 'size'"),
        ("<hypernet:x:k=1:k=2>", "k is given twice"),
        ("<hypernet:x:1:2:k=2>", "k is given twice"),
        ("<hypernet:x:uncond=maybe>", "uncond cannot be 'maybe'"),
        ("<hypernet:x:start=0.8:end=0.2>", "0.8 to 0.2"),
        ("<hypernet:x:start=-0.1>", "-0.1 to 1"),
        ("<hypernet:x:end=20>", "0 to 20"),
        ("<hypernet:x:ref=cat.png>", "ten digits 0-9 and a-f of its hash, not by 'cat.png'"),
        ("<hypernet:x:task=>", "needs a name"),
        ("<hypernet:x:text=a:task=b>", "the condition is given twice"),
        ("<hypernet:x:ref2=0123456789:task2=b>", "the second condition is given twice"),
        ("<hypernet:x:text2=a:blend=2>", "share of the second condition from 0 to 1, not 2"),
    ],
)
def test_a_tag_that_cannot_be_read_is_named_with_its_reason(text, reason):
    with pytest.raises(HypernetworkError) as raised:
        extract(f"a star {text} on blue")
    assert text in str(raised.value) and reason in str(raised.value)


@pytest.mark.parametrize(
    ("active", "text"),
    [
        (ActiveNetwork("oil"), "<hypernet:oil>"),
        (ActiveNetwork("oil", 0.8), "<hypernet:oil:0.8>"),
        (ActiveNetwork("oil #2"), "<hypernet:oil %232>"),  # a web UI would cut the prompt at "#"
        (ActiveNetwork("50% %23 %2523"), "<hypernet:50% %2523 %252523>"),
        (ActiveNetwork("oil", v=0.5), "<hypernet:oil:v=0.5>"),
        (ActiveNetwork("oil", 0.8, k=0.5, v=0.5), "<hypernet:oil:0.8:0.5:0.5>"),
        (ActiveNetwork("oil", 2, end=0.5, uncond=False), "<hypernet:oil:2:end=0.5:uncond=0>"),
        (ActiveNetwork("any", condition=ConditionSource("text", "5: <ink> #1 %")), "<hypernet:any:text=5%3A %3Cink%3E %231 %25>"),
        (ActiveNetwork("any", second=ConditionSource("reference", "0123456789"), blend=0.5), "<hypernet:any:ref2=0123456789>"),
    ],
)
def test_the_tag_of_a_network_is_short(active, text):
    assert tag(active) == text


@given(st.text(alphabet="%#235a", min_size=1))
def test_a_name_with_marks_reads_back_and_holds_no_comment(name):
    assert extract(tag(ActiveNetwork(name))) == ("", [ActiveNetwork(name)]) and "#" not in tag(ActiveNetwork(name))


@given(networks(), st.text(alphabet="ab,() :[]|\n"), st.text(alphabet="ab,() :[]|\n"))
def test_a_tag_reads_back_as_what_it_was_written_from(active, before, after):
    assert extract(before + tag(active) + after) == (before + after, [active])


@given(networks())
def test_leaving_out_any_argument_of_a_written_tag_changes_its_meaning(active):
    parts = tag(active)[1:-1].split(":")
    for i in range(2, len(parts)):
        shorter = "<" + ":".join(parts[:i] + parts[i + 1 :]) + ">"
        try:
            assert extract(shorter)[1] != [active]
        except HypernetworkError:
            pass  # it means nothing at all any more


@given(st.text(alphabet="<>:=hypernet kv01.-+e()[]\\\n\u200b", max_size=80) | st.text(max_size=40))
def test_hostile_text_is_read_or_refused_with_a_sentence(text):
    try:
        prompt, found = extract(text)
    except HypernetworkError as error:
        assert str(error).endswith(".")
    else:
        assert all(math.isfinite(one.strength) for one in found)
        assert found or prompt == text


@pytest.mark.parametrize("text", ["<hypernet:" * 50_000, "<hypernet:x:" + "1" * 200_000 + "x>", "< " * 50_000, "<hypernet" + " " * 100_000])
def test_long_hostile_text_takes_no_time(text):
    started = time.process_time()  # other programs do not count
    try:
        extract(text)
    except HypernetworkError:
        pass
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", ["", " a", "a>b", "a<b", "a:b"])
def test_a_name_that_cannot_stand_in_a_tag_is_refused(name):
    with pytest.raises(HypernetworkError, match="cannot stand in a tag"):
        tag(ActiveNetwork(name))


@pytest.mark.parametrize("values", [dict(strength=math.nan), dict(k=math.inf), dict(start=0.6, end=0.5), dict(end=1.5), dict(blend=-0.1)])
def test_values_that_cannot_be_are_refused_wherever_they_come_from(values):
    with pytest.raises(HypernetworkError):
        ActiveNetwork("oil", **values)


def test_tags_that_cannot_be_read_can_be_told_apart_from_the_others():
    problems = []
    text, found = extract("a <hypernet:ink:0.5>b<hypernet:oil:x><hypernet:wax>", problems)
    assert text == "a b" and [active.name for active in found] == ["ink", "wax"]
    assert len(problems) == 1 and "<hypernet:oil:x>" in problems[0]
