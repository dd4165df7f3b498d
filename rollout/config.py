"""What an engine is told. The command line and TOML files fill the same struct."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from rollout.address import server_url
from rollout.chat.canonical import Match
from rollout.checks import check_sampling, check_values
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

#: Whose sampling parameters hold for turns that are asked for over HTTP: the run's, or the agent's own.
AgentSampling = Literal["run", "keep"]

if TYPE_CHECKING:
    Launch = str | Callable[[], Awaitable[Any]]
else:
    Launch = Any  # a struct's union has no room for a function: see `check_config`

#: HOST or HOST:PORT.
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[\w.-]+)(:\d{1,5})?")

#: What `concurrency="auto"` never goes above.
MOST_AUTO = 4096


class EngineConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a rollout is sampled from and how: flat, in eight blocks. Times are in seconds."""

    # server: where the model is served, and how it is reached

    transport: str = "auto"
    """Entry point of group `rollout.transports`. `auto` asks the server; without `base_url`, `embedded`."""
    base_url: str | Sequence[str] | None = None
    """The server's address, or several servers' of one model: trajectories are balanced over them."""
    model: str | None = None
    """Served name; None takes the server's only model."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key. The key itself is never kept."""
    headers: Mapping[str, str] = {}
    """Sent with every request. They may be secrets: no run folder has them."""
    server_wait_s: float | None = None
    """How long a run waits for a first server to be there, and for one to come back where none is left, before it ends,
    resumable. None tries each once at the start, and waits for 300 s later."""
    http_retries: int = 4
    """How often a request is sent again where another try may help."""
    request_timeout_s: float = 600.0
    """One completion. What we paused the servers for does not count."""
    weights_timeout_s: float = 600.0
    """Loading weights, and a pause that waits for what runs, on one server."""
    max_model_len: int | None = None
    """Context length; None asks the server."""

    # tokens: how messages become ids, and ids messages

    mode: Mode = "tito"
    """Token-in wherever a prefix is proved (`tito`), or message-in throughout (`mito`)."""
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
    template_args: Mapping[str, Any] = {}
    """Further arguments of the chat template, such as `enable_thinking`."""
    require_token_in: bool = False
    """Make any fallback but `first_turn` a failure of its rollout."""
    verify: bool = False
    """Check the trajectory's invariants while running; a break is a failure of its rollout."""
    token_route: str | None = None
    """Force one token-in route by its path."""

    # sampling: what is sampled from

    max_tokens: int | None = None
    """Completion length per turn at most; None is what fits the context, or the server's own limit."""
    sampling: Mapping[str, Any] = {}
    """Further sampling parameters, by the server's names."""
    cache_salt: str | None = None
    """Keeps this run's entries in the servers' prefix cache apart from others'; sent with every request."""
    priority: int | None = None
    """Sent with every request, to servers that schedule by it."""
    routed_experts: bool = False
    """Ask for the experts that each token was routed to, and keep them: see "Experts and masks" in the manual."""
    sampling_mask: bool = False
    """Ask for the ids that each sampled token was drawn from, and keep them. Servers want a `top_k` with it."""

    # schedule: who plays, how long, and on which weights

    concurrency: int | Literal["auto"] = 64
    """Rollouts in flight at most. `auto` follows the servers' own metrics: see `rollout.schedule.concurrency`."""
    max_turns: int | None = None
    """Turns of a rollout at most; None is no limit. One that reaches it has ended well."""
    max_staleness: int | None = None
    """Weight updates that a rollout may live through, counted from its submission to when its group is taken; what
    is older is ended as a failure of kind `stale`. None is no limit."""
    stale_policy: Literal["drop", "cancel"] = "drop"
    """When it is ended: before its next turn (`drop`), or by the update itself, in the middle of one (`cancel`)."""
    straggler_timeout_s: float | None = None
    """How long a group waits for its other members once half have ended: then they are ended as failures of kind
    `straggler`, and the group is delivered without them. None waits."""
    success_at: float = 1.0
    """The reward from which a rollout has solved its task: what pass@k counts."""

    # workers: the processes that play

    processes: int = 1
    """How many processes play, each with an event loop of its own, where one core is not enough. Above 1 the engine
    starts them: see `rollout.workers.pool`."""
    launch: Launch = "local"
    """How such a process is started: a name of the entry points `rollout.launchers`, `local` for this machine or `ray`
    for a cluster, where one process is started, too; or what starts one, an asynchronous function that gives a
    `rollout.workers.launch.Worker`. A file or a flag has a name."""
    worker_start_s: float = 300.0
    """How long such a process may take until it can play: importing the environment, connecting."""
    worker_silence_s: float = 20.0
    """A process whose event loop has said nothing for so long hangs. It is ended and replaced, and the rollouts that it
    played fail as `process`. While an update of the weights waits for it, 5 s are enough."""

    ray_address: str | None = None
    """The Ray cluster of `launch="ray"`, as `ray.init` takes it. None is the one that this process is part of, else
    that of `RAY_ADDRESS`, else the one that runs on this machine; no cluster is ever started."""
    ray_num_cpus: float = 1.0
    """CPUs that a node must have free for a worker. It is placed by them, not held to them."""
    ray_resources: Mapping[str, float] = {}
    """Custom resources that a worker's node must have, too, such as `{"rollout": 1}`."""
    ray_runtime_env: Mapping[str, Any] = {}
    """Ray's runtime environment of the workers, with the user's modules: `{"working_dir": "."}`. A run folder does not
    keep its `env_vars`."""
    ray_listen: str | None = None
    """HOST or HOST:PORT of this machine that workers connect back to; None is this node's address, as Ray has it, and a
    free port."""

    # proxy: rollouts' models over HTTP, for agents that bring a client of their own

    proxy_host: str = "127.0.0.1"
    """What it listens on. Beyond this machine (`0.0.0.0`, for containers and other hosts) whoever has a rollout's key
    may use it; the keys are secrets, a new one for each rollout."""
    proxy_port: int = 0
    """0 takes a free one. With several processes each takes the next free one from here on."""
    proxy_address: str | None = None
    """The address that programs are told, where it is another: `host.docker.internal`, `10.0.0.7:9000`, or a URL."""
    agent_sampling: AgentSampling = "run"
    """Whose sampling holds over HTTP: the run's (`run`), or what the agent's requests ask for (`keep`). The form that
    an answer must have (stop, response_format) and the agent's cap on tokens hold either way."""
    client_gone_s: float = 10.0
    """How long a turn goes on whose client has left, before it is cancelled: SDKs ask again, and mark it."""
    proxy_keepalive_s: float = 15.0
    """Between two comments in a stream while the model thinks: below what stands between allows a silent connection.
    The stream begins with the first. SDKs ask again, by themselves, for what failed before that."""
    proxy_turns: int = 1_024
    """Turns of one rollout under way over HTTP at most; further requests are told to come again (429)."""
    proxy_body_bytes: int = 64 * 2**20
    """A request's body at most."""
    proxy_answers: int = 4_096
    """Answers of a rollout that are known when they come back, and that `previous_response_id` may name."""
    proxy_memory_bytes: int = 64 * 2**20
    """Bytes of a rollout's messages that are known when they come again; others are read anew."""

    # observe: who is told

    tracing: bool = False
    """Spans of rollouts, turns and requests, by the OpenTelemetry provider that the process has, and `traceparent` to
    the servers. No message is in them. A worker process exports as OpenTelemetry's own variables say."""

    # faults: what environments may take, and what becomes of a failure

    step_timeout_s: float | None = None
    """One call of the environment's reset or step."""
    score_timeout_s: float | None = None
    """The environment's score, and a stream's group reward; None takes `step_timeout_s`."""
    close_timeout_s: float | None = 60.0
    """The environment's close, which is cut off then, and said; 5 s at most where the run is cancelled. None waits."""
    episode_timeout_s: float | None = None
    """A whole rollout; None is no limit."""
    rollout_retries: int = 0
    """How often a rollout that failed of its environment, the transport, its process or a deadline is played again,
    whole."""
    max_abandoned_threads: int = 256
    """Calls of environments that may hang in threads, after their deadline or when they were cancelled. Nothing can
    end a thread: past so many the run ends and says why; a process of several (`processes`) is replaced."""

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
    def pooled(self) -> bool:
        """Whether other processes play: several, or one that is started elsewhere."""
        return self.processes > 1 or self.launch != "local"

    @property
    def most_at_once(self) -> int:
        """Rollouts that can ever be in flight."""
        return MOST_AUTO if self.concurrency == "auto" else self.concurrency


def check_config(config: EngineConfig) -> None:
    """Raises ConfigError for settings that contradict each other or cannot be, block by block."""
    check_values(config)
    _check_times(config)
    _check_server(config)
    _check_tokens(config)
    _check_sampling(config)
    _check_schedule(config)
    _check_workers(config)
    _check_proxy(config)
    _check_faults(config)


def _check_server(config: EngineConfig) -> None:
    _at_least(config, 0, "http_retries")
    _at_least(config, 1, "max_model_len")
    if config.transport in ("vllm", "dynamo") and not config.base_urls:
        raise ConfigError(f"transport {config.transport!r} needs the server's address: give base_url")
    for url in config.base_urls:
        try:
            server_url(url)
        except ConfigError as error:
            raise ConfigError(f"base_url: {error}") from None


def _check_tokens(config: EngineConfig) -> None:
    if config.mode == "mito" and config.require_token_in:
        raise ConfigError("mode mito sends messages, and require_token_in forbids it: drop one of them")


def _check_sampling(config: EngineConfig) -> None:
    _at_least(config, 1, "max_tokens")
    check_sampling(config.sampling)


def _check_schedule(config: EngineConfig) -> None:
    _at_least(config, 1, "concurrency", "max_turns")
    _at_least(config, 0, "max_staleness")


def _check_workers(config: EngineConfig) -> None:
    _at_least(config, 1, "processes")
    if not isinstance(config.launch, str) and not callable(config.launch):
        raise ConfigError(f"launch must be a name or a function that starts a process, not {config.launch!r:.200}")
    _check_ray(config)


def _check_ray(config: EngineConfig) -> None:
    if config.ray_address is not None and config.ray_address.startswith("ray://"):
        raise ConfigError(
            "ray_address is a cluster's own (HOST:6379, or auto), not Ray Client's (ray://): workers connect back to "
            "this process, so run it on a node of the cluster, or by `ray job submit`"
        )
    if not 0 <= config.ray_num_cpus < math.inf:
        raise ConfigError(f"ray_num_cpus is a number of CPUs, 0 or more, not {config.ray_num_cpus}")
    for name, amount in config.ray_resources.items():
        if not 0 < amount < math.inf or name in ("CPU", "GPU", "memory"):
            raise ConfigError(
                f"ray_resources has custom resources and how much of each, above 0, not {name}={amount}"
                + (": give ray_num_cpus" if name == "CPU" else "")
            )
    if config.ray_listen is not None:
        found = _LISTEN.fullmatch(config.ray_listen)
        if found is None or int((found[2] or ":0")[1:]) > 65535:
            raise ConfigError(f"ray_listen is HOST or HOST:PORT, not {config.ray_listen!r}")


def _check_proxy(config: EngineConfig) -> None:
    _at_least(config, 0, "proxy_port")
    _at_least(config, 1, "proxy_turns", "proxy_answers", "proxy_memory_bytes")
    _at_least(config, 1_024, "proxy_body_bytes")
    if config.proxy_port > 65535:
        raise ConfigError(f"proxy_port is a number from 0 (any that is free) to 65535, not {config.proxy_port}")
    if not config.proxy_host:
        raise ConfigError("proxy_host is empty: 127.0.0.1 is this machine, 0.0.0.0 whoever reaches it")
    if config.proxy_address is not None:
        try:
            server_url(config.proxy_address)
        except ConfigError as error:
            raise ConfigError(f"proxy_address: {error}") from None
        if config.processes > 1 and (config.proxy_address.count(":") == 1 or "://" in config.proxy_address):
            raise ConfigError(
                f"proxy_address: each of {config.processes} processes has a port of its own, so it must be a host "
                f"alone, not {config.proxy_address!r}"
            )


def _check_faults(config: EngineConfig) -> None:
    _at_least(config, 0, "rollout_retries")


def _at_least(config: EngineConfig, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int) and value < least:
            raise ConfigError(f"{name} must be {least} or more, not {value}")


def _check_times(config: EngineConfig) -> None:
    for name in config.__struct_fields__:
        value = getattr(config, name)
        if name.endswith("_s") and value is not None and value <= 0:
            raise ConfigError(f"{name} must be above 0 seconds, not {value:g}")
