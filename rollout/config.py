"""What an engine is told. The command line and TOML files fill the same struct."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from rollout.chat.canonical import Match
from rollout.door import Refused, is_plain, plain
from rollout.errors import ConfigError

#: Token-in wherever a prefix is proved, or message-in throughout.
Mode = Literal["tito", "mito"]

#: What becomes of late system and developer messages:
#: auto    kept where the model's template shows them, else folded into the user message beside them
#: fold    folded, whatever the template does with them
#: keep    sent as they are, and the template or the server may refuse
#: refuse  a failure of their rollout
LateSystem = Literal["auto", "fold", "keep", "refuse"]

if TYPE_CHECKING:
    Launch = str | Callable[[], Awaitable[Any]]
else:
    Launch = Any  # a struct's union has no room for a function: see `check_config`

#: What `concurrency="auto"` never goes above.
MOST_AUTO = 4096


class EngineConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a rollout is sampled from and how. Times are in seconds."""

    transport: str = "auto"
    """Entry point of group `rollout.transports`. `auto` asks the server; without `base_url`, `embedded`."""
    base_url: str | Sequence[str] | None = None
    """The server's address, or several servers' of one model: trajectories are balanced over them."""
    server_wait_s: float | None = None
    """How long a run waits for a first server to be there, and for one to come back where none is left, before it ends,
    resumable. None tries each once at the start, and waits for 300 s later."""
    model: str | None = None
    """Served name; None takes the server's only model."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key. The key itself is never kept."""
    tokenizer: str | None = None
    """Name or folder of the tokenizer; None tries the embedded folder, then the served name."""
    renderer: str = "auto"
    """A family of the `renderers` package, `template`, `server`, or `auto`."""
    thinking_retention: Literal["all", "tool_cycle"] = "all"
    """`all` keeps the prefix over a new user message; `tool_cycle` drops earlier reasoning there, message-in."""
    reader: str = "auto"
    """What reads reasoning and calls out of what the model wrote: a name of `rollout.codec.readers`, or `auto`, which
    asks what the model is: how its template writes a call, its tokens, its name."""
    require_reader: bool = False
    """Refuse at the start a model whose calls nothing here reads; else that is said once, where tools are offered."""
    special_tokens_in_text: Literal["text", "token"] = "text"
    """What becomes of a special token's text that a user's or a tool's message holds (`<|im_end|>` in a web page): it
    stays text, so that nobody can end a message from inside it, or it becomes the token. The same on turn 1, which is
    rendered here where such a text is in it, and later. A tokenizer is needed here to keep it text."""
    late_system: LateSystem = "auto"
    """What becomes of system and developer messages behind the conversation's beginning: kept where the model's
    template shows them and folded into the user message beside them where it does not (`auto`), always folded (`fold`),
    always kept (`keep`), or a failure of their rollout (`refuse`). On both routes alike."""
    match: Match = "strict"
    """What counts as the same message when a conversation comes back: see `rollout.chat.canonical`."""
    mode: Mode = "tito"
    require_token_in: bool = False
    """Make any fallback but `first_turn` a failure of its rollout."""
    verify: bool = False
    """Check the trajectory's invariants while running; a break is a failure of its rollout."""
    token_route: str | None = None
    """Force one token-in route by its path."""
    max_tokens: int | None = None
    """Completion length per turn at most; None is what fits the context, or the server's own limit."""
    sampling: Mapping[str, Any] = {}
    """Further sampling parameters, by the server's names."""
    template_args: Mapping[str, Any] = {}
    max_model_len: int | None = None
    """Context length; None asks the server."""
    max_turns: int | None = None
    concurrency: int | Literal["auto"] = 64
    """Rollouts in flight at most. `auto` follows the servers' own metrics: see `rollout.schedule.concurrency`."""
    processes: int = 1
    """How many processes play, each with an event loop of its own, where one core is not enough. Above 1 the engine
    starts them: see `rollout.workers.pool`."""
    launch: Launch = "local"
    """How such a process is started: a name of the entry points `rollout.launchers`, `local` for this machine, or what
    starts one, an asynchronous function that gives a `rollout.workers.launch.Worker`. A file or a flag has a name."""
    worker_start_s: float = 300.0
    """How long such a process may take until it can play: importing the environment, connecting."""
    worker_silence_s: float = 20.0
    """A process whose event loop has said nothing for so long hangs. It is ended and replaced, and the rollouts that it
    played fail as `process`. While an update of the weights waits for it, 5 s are enough."""
    max_staleness: int | None = None
    """Weight updates that a rollout may live through, counted from its submission to when its group is taken; what
    is older is ended as a failure of kind `stale`. None is no limit."""
    stale_policy: Literal["drop", "cancel"] = "drop"
    """When it is ended: before its next turn (`drop`), or by the update itself, in the middle of one (`cancel`)."""
    rollout_retries: int = 0
    """How often a rollout that failed of its environment, the transport, its process or a deadline is played again,
    whole."""
    weights_timeout_s: float = 600.0
    """Loading weights, and a pause that waits for what runs, on one server."""
    success_at: float = 1.0
    """The reward from which a rollout has solved its task: what pass@k counts."""
    cache_salt: str | None = None
    priority: int | None = None
    request_timeout_s: float = 600.0
    step_timeout_s: float | None = None
    """One call of the environment's reset or step."""
    score_timeout_s: float | None = None
    """The environment's score, and a stream's group reward; None takes `step_timeout_s`."""
    close_timeout_s: float | None = 60.0
    """The environment's close, which is cut off then, and said; 5 s at most where the run is cancelled. None waits."""
    max_abandoned_threads: int = 256
    """Calls of environments that may hang in threads, after their deadline or when they were cancelled. Nothing can
    end a thread: past so many the run ends and says why; a process of several (`processes`) is replaced."""
    straggler_timeout_s: float | None = None
    """How long a group waits for its other members once half have ended: then they are ended as failures of kind
    `straggler`, and the group is delivered without them. None waits."""
    episode_timeout_s: float | None = None
    http_retries: int = 4
    headers: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        """What is set in a program may be numpy's or a tuple; every setting is sent or written. Raises ConfigError."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name == "launch" and callable(value):
                continue
            if not isinstance(value, float) and not is_plain(value):  # a deadline may be infinite
                try:
                    setattr(self, name, plain(value))
                except Refused as refused:
                    raise ConfigError(f"setting {name!r} cannot be used: {refused}") from refused

    @property
    def base_urls(self) -> list[str]:
        """The servers' addresses; none for the embedded model."""
        urls = [self.base_url] if isinstance(self.base_url, str) else self.base_url or ()
        return list(dict.fromkeys(urls))

    @property
    def most_at_once(self) -> int:
        """Rollouts that can ever be in flight."""
        return MOST_AUTO if self.concurrency == "auto" else self.concurrency
