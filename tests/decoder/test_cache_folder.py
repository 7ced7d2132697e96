"""Triton's cache folder: replaced where it cannot be used."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from musicgen.decoder.kernels import cache_folder, compiler


@pytest.fixture
def triton(tmp_path, monkeypatch):
    """A Triton whose default cache folder is below a file, where no folder can be made."""
    (tmp_path / "home").touch()
    cache = SimpleNamespace(dir=str(tmp_path / "home" / "cache"))
    knobs = SimpleNamespace(cache=cache, compilation=SimpleNamespace())
    monkeypatch.setattr(compiler, "triton", SimpleNamespace(knobs=knobs))
    monkeypatch.delenv("MUSICGEN_PREBUILT_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache_folder.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    cache_folder.ensure_usable.cache_clear()
    yield cache
    cache_folder.ensure_usable.cache_clear()


def test_a_default_folder_that_cannot_be_written_is_replaced(triton, tmp_path, caplog):
    cache_folder.ensure_usable()
    assert triton.dir == str(tmp_path / "tmp" / f"musicgen-triton-{os.getuid()}")
    assert Path(triton.dir).stat().st_mode & 0o777 == 0o700
    assert "cannot be used" in caplog.text


def test_a_folder_for_caches_is_preferred(triton, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    cache_folder.ensure_usable()
    assert triton.dir == str(tmp_path / "caches" / "musicgen-triton")


def test_a_usable_default_stays(triton, tmp_path, caplog):
    triton.dir = str(tmp_path / "cache")
    cache_folder.ensure_usable()
    assert triton.dir == str(tmp_path / "cache")
    assert not caplog.records


def test_the_operators_folder_stays(triton, monkeypatch):
    before = triton.dir
    monkeypatch.setenv("TRITON_CACHE_DIR", before)
    cache_folder.ensure_usable()
    assert triton.dir == before


def test_a_folder_that_others_can_write_or_that_cannot_execute_is_not_used(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    assert cache_folder.is_usable(folder)
    folder.chmod(0o777)
    assert not cache_folder.is_usable(folder)
    folder.chmod(0o700)
    flags = os.statvfs(folder).f_flag | os.ST_NOEXEC
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flags))
    assert not cache_folder.is_usable(folder)


def test_without_any_folder_an_error_is_logged(triton, monkeypatch, caplog):
    monkeypatch.setattr(cache_folder, "is_usable", lambda folder: False)
    cache_folder.ensure_usable()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
