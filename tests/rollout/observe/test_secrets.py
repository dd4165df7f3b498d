"""What a tracker's package says is shown without the keys in it."""

from __future__ import annotations

import pytest

from rollout.observe.secrets import without_secrets


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("API request to http://me:hunter2@host:5000/api failed", "API request to http://host:5000/api failed"),
        ("postgresql+psycopg://u:p@ss/word@db/x", "postgresql+psycopg://db/x"),
        ("GET https://h/log?write_token=abc123&step=1", "GET https://h/log?write_token=***&step=1"),
        ("url: /x?a=1&api_key=s3cr3t)", "url: /x?a=1&api_key=***)"),
        ("Bearer wandb-v1-0123 refused", "Bearer *** refused"),
        ("run 7 at http://host/runs?id=3 is gone, ask a@b.org", "run 7 at http://host/runs?id=3 is gone, ask a@b.org"),
    ],
)
def test_keys_are_left_out_and_all_else_stays(said: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords of addresses, tokens in their queries, and whatever a secret variable holds."""
    monkeypatch.setenv("WANDB_API_KEY", "wandb-v1-0123")
    monkeypatch.setenv("SHORT_TOKEN", "run")
    assert without_secrets(said) == shown
