"""Chat models over HTTP: text and data, retries, refusals, servers that know less than others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from kb.adapters.http_chat import OpenAIChat
from kb.errors import ProviderNotInitialized
from kb.model_options import ChatOptions
from kb.ports import Message, Usage
from pipelines.errors import RateLimited, TransientError
from tests import embedding_provider as bad
from tests.embedding_provider import Behaviour
from tests.judging import TALKER, Judge

KEY = "sk-the-key-of-the-tests"
HELLO = [Message("system", "Be kind."), Message("user", "Hello, 世界!")]

Open = Callable[..., OpenAIChat]


class Pair(BaseModel):
    question: str
    answer: str


class Pairs(BaseModel):
    pairs: list[Pair]


GOOD = '{"pairs": [{"question": "Who?", "answer": "Ann"}]}'


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge(api_key=KEY) as opened:
        yield opened


@pytest.fixture
def open_chat(judge: Judge) -> Iterator[Open]:
    opened: list[OpenAIChat] = []

    def make(*, model: str = TALKER, api_key: str = KEY, **options: Any) -> OpenAIChat:
        chosen = ChatOptions(**{"url": judge.url, "retries": 2, "retry_base_s": 0.01, **options})
        opened.append(
            OpenAIChat(model, chosen, api_key=api_key, where=lambda name: f"<{name.upper()}>")
        )
        return opened[-1]

    yield make
    for chat in opened:
        chat.close()


def test_a_conversation_gets_an_answer_and_what_it_cost(judge: Judge, open_chat: Open) -> None:
    reply = open_chat(max_tokens=100).chat(HELLO)
    assert (reply.text, reply.cut) == ("Hello, 世界!", False)
    assert reply.usage == Usage(7, 4)
    (asked,) = judge.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": TALKER,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello, 世界!"},
        ],
        "temperature": 0.0,
        "max_tokens": 100,
    }


def test_a_call_overrides_the_options_and_names_follow_the_server(
    judge: Judge, open_chat: Open
) -> None:
    chat = open_chat(max_tokens=5, max_tokens_field="max_completion_tokens", temperature=None)
    chat.chat(HELLO)
    assert judge.asked[0].body.keys() == {"model", "messages", "max_completion_tokens"}
    chat.chat(HELLO, max_tokens=7, temperature=1.5)
    assert judge.asked[1].body["max_completion_tokens"] == 7
    assert judge.asked[1].body["temperature"] == 1.5


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (None, "https://api.openai.com/v1/chat/completions"),
        ("http://h:11434", "http://h:11434/v1/chat/completions"),
        ("http://h/v1/", "http://h/v1/chat/completions"),
        (
            "https://h/x/chat/completions?api-version=1",
            "https://h/x/chat/completions?api-version=1",
        ),
    ],
)
def test_an_address_is_completed_as_far_as_it_must_be(
    open_chat: Open, given: str | None, asked: str
) -> None:
    assert f"at {asked!r}" in repr(open_chat(url=given))


@pytest.mark.parametrize(
    "behaviour",
    [
        bad.status(429),
        bad.status(500),
        bad.status(503, retry_after="0"),
        bad.dropped,
        bad.cut,
        bad.body("<html>"),
        bad.body('{"choices": []}'),
        bad.body('{"choices": [{"message": {"content": null}}]}'),
    ],
)
def test_a_server_that_falters_is_asked_again(
    judge: Judge, open_chat: Open, behaviour: Behaviour
) -> None:
    judge.next(behaviour, behaviour)
    assert open_chat().chat(HELLO).text == "Hello, 世界!"
    assert len(judge.asked) == 3


def test_a_pause_is_kept_and_one_beyond_the_time_is_told(judge: Judge, open_chat: Open) -> None:
    judge.next(bad.status(429, retry_after="0.3"))
    started = time.monotonic()
    open_chat().chat(HELLO)
    assert time.monotonic() - started >= 0.3
    judge.always(bad.status(429, retry_after="60"))
    with pytest.raises(RateLimited) as caught:
        open_chat().chat(HELLO)
    assert caught.value.retry_after_s == 60


def test_the_time_of_a_call_bounds_all_its_attempts(judge: Judge, open_chat: Open) -> None:
    judge.always(bad.slow(1.0))
    started = time.monotonic()
    with pytest.raises(TransientError, match=r"the chat server http.*did not answer"):
        open_chat(retries=9).chat(HELLO, timeout_s=0.3)
    assert time.monotonic() - started < 0.9


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"api_key": "sk-wrong"}, r"401.*\*\*\*; set <API_KEY>"),
        ({"model": "unknown"}, r"404.*'unknown' does not exist.*<URL>"),
    ],
)
def test_a_refusal_names_what_to_change_and_never_the_key(
    judge: Judge, open_chat: Open, given: dict[str, Any], said: str
) -> None:
    chat = open_chat(**given)
    for call in (lambda: chat.chat(HELLO), lambda: chat.chat_as(Pairs, HELLO)):
        with pytest.raises(ProviderNotInitialized, match=said) as caught:
            call()
        assert "sk-" not in caught.value.message


def test_what_a_model_thinks_aloud_is_left_out(judge: Judge, open_chat: Open) -> None:
    judge.says.append("<think>\nHm, who\n</think>\n\nAnn.")
    assert open_chat().chat(HELLO).text == "Ann."


# --- data ----------------------------------------------------------------------------------------


def test_data_is_asked_for_by_schema_and_validated(judge: Judge, open_chat: Open) -> None:
    judge.says.append(GOOD)
    reply = open_chat().chat_as(Pairs, HELLO)
    assert reply.value.pairs == [Pair(question="Who?", answer="Ann")]
    assert reply.usage.completion_tokens > 0
    (asked,) = judge.asked
    wanted = asked.body["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["schema"] == Pairs.model_json_schema()
    assert '"question"' in asked.body["messages"][0]["content"], "it is told in words, too"


@pytest.mark.parametrize(
    "said",
    [f"```json\n{GOOD}\n```", f"Here you are: {GOOD} Anything else?", f"<think>{{</think>{GOOD}"],
)
def test_data_among_words_is_found(judge: Judge, open_chat: Open, said: str) -> None:
    judge.says.append(said)
    assert open_chat().chat_as(Pairs, HELLO).value.pairs[0].answer == "Ann"


def test_an_answer_of_another_shape_is_asked_for_again_with_what_is_wrong(
    judge: Judge, open_chat: Open
) -> None:
    judge.says += ['{"pairs": [{"question": "Who?"}]}', "no idea", GOOD]
    reply = open_chat().chat_as(Pairs, HELLO)
    assert reply.value.pairs[0].answer == "Ann"
    assert len(judge.asked) == 3
    again = judge.asked[1].body["messages"]
    assert again[-2] == {"role": "assistant", "content": '{"pairs": [{"question": "Who?"}]}'}
    assert "pairs.0.answer: Field required" in again[-1]["content"]
    assert len(judge.asked[2].body["messages"]) == len(again), "one correction at a time"
    judge.says += ["no"] * 3
    with pytest.raises(TransientError, match="no answer of the shape"):
        open_chat().chat_as(Pairs, HELLO)


@pytest.mark.parametrize(
    ("formats", "asked"),
    [
        ({"json_object"}, ["json_schema", "json_object", "json_object"]),
        (set(), ["json_schema", "json_object", None, None]),
    ],
)
def test_a_server_that_does_not_know_schemas_is_asked_as_it_can_and_that_is_remembered(
    judge: Judge, open_chat: Open, formats: set[str], asked: list[str | None]
) -> None:
    judge.formats = formats
    judge.says += [GOOD, GOOD]
    chat = open_chat()
    for _ in range(2):
        assert chat.chat_as(Pairs, HELLO).value.pairs[0].answer == "Ann"
    assert [a.body.get("response_format", {}).get("type") for a in judge.asked] == asked


def test_a_refusal_of_everything_does_not_make_it_forget_schemas(
    judge: Judge, open_chat: Open
) -> None:
    chat = open_chat()
    judge.next(*[bad.status(400, "the prompt is forbidden")] * 3)
    with pytest.raises(ProviderNotInitialized, match="the prompt is forbidden"):
        chat.chat_as(Pairs, HELLO)
    judge.says.append(GOOD)
    chat.chat_as(Pairs, HELLO)
    assert judge.asked[-1].body["response_format"]["type"] == "json_schema"
