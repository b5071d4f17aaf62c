"""Secrets at rest: sealed, opened with any of several keys; clear errors without it."""

from __future__ import annotations

import base64
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from kb.errors import Misconfigured, SecretUnreadable
from kb.secrets import Keyring, hint_of, is_sealed, open_keyring


def key(fill: int) -> str:
    return base64.b64encode(bytes([fill]) * 32).decode()


def ring(*fills: int) -> Keyring:
    return open_keyring(",".join(map(key, fills)), Path("/nowhere"), several=False)


def test_a_sealed_text_is_another_each_time_and_opens_to_itself() -> None:
    first, second = ring(1).seal("sk-秘密"), ring(1).seal("sk-秘密")
    assert first != second
    assert is_sealed(first)
    assert first.isascii()
    assert "sk-" not in first
    assert ring(1).open(first) == ring(1).open(second) == "sk-秘密"


def test_what_an_older_version_stored_in_clear_is_read_as_it_is() -> None:
    assert not is_sealed("whsec_abc")
    assert ring(1).open("whsec_abc") == "whsec_abc"


def test_after_a_rotation_the_first_key_seals_and_all_open() -> None:
    old = ring(1).seal("secret")
    both = ring(2, 1)
    assert both.open(old) == "secret"
    new = both.seal("secret")
    assert ring(2).open(new) == "secret"
    with pytest.raises(SecretUnreadable):
        ring(1).open(new)


def test_another_key_and_damage_are_refused_with_the_remedy() -> None:
    sealed = ring(1).seal("secret")
    damaged = sealed[:-6] + ("AAAAA=" if not sealed.endswith("AAAAA=") else "BBBBB=")
    for text, keys in ((sealed, ring(2)), (damaged, ring(1)), (sealed[:-30] + "é", ring(1))):
        with pytest.raises(SecretUnreadable, match=r"none of the keys of KB_SECRET_KEY.*commas"):
            keys.open(text)


def test_the_first_start_makes_a_key_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    sealed = open_keyring(None, tmp_path, several=False).seal("secret")
    assert os.listdir(tmp_path) == ["secret.key"]
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600
    assert open_keyring(None, tmp_path, several=False).open(sealed) == "secret"


def test_a_new_line_at_the_top_of_the_key_file_rotates(tmp_path: Path) -> None:
    sealed = open_keyring(None, tmp_path, several=False).seal("secret")
    file = tmp_path / "secret.key"
    file.write_text(f"{key(7)}\n{file.read_text()}")
    rotated = open_keyring(None, tmp_path, several=False)
    assert rotated.open(sealed) == "secret"
    assert ring(7).open(rotated.seal("other")) == "other"


def test_threads_that_start_at_once_agree_on_one_key_file(tmp_path: Path) -> None:
    rings: list[Keyring] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        rings.append(open_keyring(None, tmp_path, several=False))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sealed = rings[0].seal("secret")
    assert [each.open(sealed) for each in rings] == ["secret"] * 8


@pytest.mark.parametrize("setting", ["", ",", "short", key(1)[:-5], f"{key(1)},no key"])
def test_a_setting_that_is_no_key_says_how_to_make_one(setting: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"KB_SECRET_KEY .*openssl rand -base64 32"):
        open_keyring(setting, tmp_path, several=False)


def test_both_alphabets_of_base64_are_keys() -> None:
    raw = bytes(range(224, 256))
    plain = open_keyring(base64.b64encode(raw).decode(), Path("/nowhere"), several=False)
    safe = open_keyring(base64.urlsafe_b64encode(raw).decode(), Path("/nowhere"), several=False)
    assert safe.open(plain.seal("secret")) == "secret"


def test_several_processes_without_a_setting_seal_nothing_and_make_no_file(tmp_path: Path) -> None:
    keyring = open_keyring(None, tmp_path, several=True)
    assert not keyring.usable
    assert os.listdir(tmp_path) == []
    with pytest.raises(Misconfigured, match=r"KB_REDIS_URL.*KB_SECRET_KEY.*in all of them"):
        keyring.seal("secret")
    with pytest.raises(SecretUnreadable, match="KB_SECRET_KEY"):
        keyring.open(ring(1).seal("secret"))


def test_a_key_file_of_the_embedded_size_serves_the_service_size_too(tmp_path: Path) -> None:
    sealed = open_keyring(None, tmp_path, several=False).seal("secret")
    assert open_keyring(None, tmp_path, several=True).open(sealed) == "secret"


def test_a_hint_shows_four_characters_of_a_long_secret_and_none_of_a_short_one() -> None:
    assert hint_of("sk-0123456789abcdef") == "…cdef"
    assert hint_of("password") == "…"


def test_no_key_is_in_the_words_for_a_keyring() -> None:
    assert not re.search(key(1)[:10], repr(ring(1)))
