"""Random generations are audiocraft's; a difference that rounding does not explain is an error."""

import json

import pytest

from benchmarks import parity


def test_random_generations_are_audiocrafts(capsys):
    count = len(parity.SETTINGS)
    parity.main(count, seed=0)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    for counted in document.values():
        assert sum(record["generations"] for record in counted.values()) == count
        assert not any(record["others"] for record in counted.values())


def test_a_wrong_decoder_is_detected(capsys, monkeypatch):
    build = parity.System.__init__

    def broken(self, *arguments):
        build(self, *arguments)
        # A new tensor, because audiocraft's model has the same one.
        self.lm.out_norm.weight.data = 1.01 * self.lm.out_norm.weight

    monkeypatch.setattr(parity.System, "__init__", broken)
    with pytest.raises(SystemExit):
        parity.main(len(parity.SETTINGS), seed=0)
    assert "NO TIE" in capsys.readouterr().out
