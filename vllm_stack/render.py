"""A plan becomes files: the text of every one of them, without touching the disk."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from vllm_stack import __version__
from vllm_stack.errors import OutputError
from vllm_stack.files import File
from vllm_stack.keys.api_key import hash_key
from vllm_stack.layout import is_plain
from vllm_stack.options import Options
from vllm_stack.planning.plan import Plan, WorkerPlan
from vllm_stack.ray.node import AGENT_HEALTH, node_as_json
from vllm_stack.reasons import WHY
from vllm_stack.records.in_force import VARIABLE, fingerprint


def render(plan: Plan) -> list[File]:
    """Give every file of the stack but the keys; the same plan always gives the same bytes."""
    if not is_plain(str(plan.python)):
        raise OutputError(
            f"The Python interpreter {str(plan.python)!r} has a character in its path that supervisord's "
            "configuration gives a meaning to: install vllm-stack in a plainer directory"
        )
    layout = plan.layout
    gunicorn_conf = File(layout.gunicorn_conf, _fill("gunicorn.conf.py.j2", plan=plan))
    proxy_json = File(layout.proxy_json, _json(_proxy(plan)))
    workers = {
        worker.name: File(layout.worker_json(worker.name), _json(_worker(plan, worker)))
        for worker in plan.workers
    }
    # supervisord tells each program which options it was configured with (see `in_force`).
    options = {name: fingerprint([file.text.encode()]) for name, file in workers.items()}
    stack_json = File(layout.stack_json, _json(_stack(plan)))
    options["proxy"] = fingerprint(file.text.encode() for file in (proxy_json, gunicorn_conf, stack_json))
    supervisord_conf = _fill("supervisord.conf.j2", plan=plan, options=options, variable=VARIABLE)
    return [
        File(layout.supervisord_conf, supervisord_conf),
        gunicorn_conf,
        proxy_json,
        *workers.values(),
        stack_json,
        *_ray(plan),
        *_monitoring(plan),
        *_unit(plan),
    ]


def render_member(plan: Plan) -> list[File]:
    """Give the files of a box that joins a Ray cluster: its program alone, for there is no door."""
    (head,) = plan.workers
    layout = plan.layout
    program = File(layout.worker_json(head.name), _json(_worker(plan, head)))
    options = {head.name: fingerprint([program.text.encode()])}
    conf = _fill("supervisord.conf.j2", plan=plan, options=options, variable=VARIABLE)
    return [
        File(layout.supervisord_conf, conf),
        program,
        File(layout.stack_json, _json(_stack(plan))),
        *_unit(plan),
    ]


def _ray(plan: Plan) -> list[File]:
    """Give what Ray Serve is told, where it runs the workers: the very value that the head deploys."""
    if plan.ray is None or plan.ray.serve is None:
        return []
    import yaml  # which few stacks need

    # By way of JSON: what stands twice in it is written twice, and not as an alias of YAML.
    text = yaml.safe_dump(json.loads(_json(dict(plan.ray.serve))), sort_keys=False, width=110)
    return [File(plan.layout.serve_yaml, _fill("serve.yaml.j2", plan=plan, config=text))]


def _monitoring(plan: Plan) -> list[File]:
    """Give what Prometheus and Grafana read.

    But for the port they are the same for every stack; their braces are of those programs' own templates.
    """
    place, templates = plan.layout.monitoring, templates_directory() / "monitoring"
    return [
        File(place / "prometheus.yml", _fill("monitoring/prometheus.yml.j2", plan=plan)),
        *(
            File(place / name, (templates / name).read_text("utf-8"))
            for name in ("alerts.yml", "grafana.json")
        ),
    ]


def _unit(plan: Plan) -> list[File]:
    """Give the systemd unit where one is asked for; systemd warns of one that others may not read."""
    if plan.service is None:
        return []
    text = _fill("vllm-stack.service.j2", plan=plan, service=plan.service, why=WHY)
    return [File(plan.layout.unit, text, mode=0o644)]


def _worker(plan: Plan, worker: WorkerPlan) -> dict[str, Any]:
    layout = plan.layout
    spec = {
        "name": worker.name,
        "address": str(worker.address),
        "argv": worker.argv,
        "env": worker.env,
        "secret_env": {"VLLM_API_KEY": str(layout.internal_key)},
        "box": str(layout.box(worker.name)),
        "state": str(layout.state),
        "log": str(layout.log(worker.name)),
        "evidence": str(layout.evidence),
        "title": layout.process_title(worker.name),
        "device": plan.device,
        "gpus": worker.gpus,
        "cores": () if plan.options.on_cpu else worker.cores,
        "admin_port": plan.options.admin_port,
        "engine": worker.engine,
        "gpu_patience": plan.timings.gpu_patience,
        "restart_delay": plan.timings.restart_delay,
        "restart_delay_max": plan.options.restart_delay_max,
        "start_timeout": plan.options.start_timeout,
        "start_stagger": plan.options.start_stagger,
        "wedge_timeout": plan.options.wedge_timeout,
        "settle": plan.timings.start_seconds + 0.5,
        "stop_grace": plan.timings.stop_grace,
        **_of_ray(plan),
    }
    return {**spec, "why": {name: why for name, why in WHY.items() if name in spec or name in worker.env}}


def _of_ray(plan: Plan) -> dict[str, Any]:
    """Give what is different of a program that stands for Ray: it judges hangs, and starts, by itself."""
    if plan.ray is None:
        return {}
    return {
        "what": "Ray",
        "health": AGENT_HEALTH if plan.ray.node.joins else "/health",
        "secret_env": {},
        "start_timeout": 0,
        "start_stagger": "none",
        "wedge_timeout": 0,
        "ray": node_as_json(plan.ray.node),
    }


def _proxy(plan: Plan) -> dict[str, Any]:
    options, layout = plan.options, plan.layout
    return {
        "name": "proxy",
        "box": str(layout.box("proxy")),
        "state": str(layout.state),
        "title": layout.process_title("proxy"),
        "port": options.port,
        "admin_port": options.admin_port,
        "models": [{"names": choice.names, "servers": choice.servers} for choice in plan.choices],
        "workers": [
            {"name": worker.name, "address": str(worker.address), "gpus": worker.gpus}
            for worker in plan.workers
        ],
        "tls": _tls(options),
        "upstreams": _upstreams(plan),
        "upstream_keys": str(options.upstream_key_file) if options.upstream_key_file else None,
        "policy": options.policy,
        "session_header": options.session_header,
        "processes": plan.proxy_processes,
        "client_keys": [hash_key(key.encode()).hex() for key in options.api_keys],
        "require_key": options.require_key,
        "named_keys": str(layout.named_keys),
        "internal_key": str(layout.internal_key),
        "open_routes": list(options.open_routes),
        "cors_origins": list(options.cors_origins),
        "max_body": options.max_body,
        "max_inflight_per_worker": options.max_inflight_per_worker,
        "queue_timeout": options.queue_timeout,
        "response_timeout": options.response_timeout,
        "pool_idle": plan.timings.pool_idle,
        "upstream_idle": plan.timings.upstream_idle,
        "drain_timeout": plan.timings.drain_timeout,
        "access_log": _access_log(plan),
        "vllm_version": plan.vllm_version,
    }


def _access_log(plan: Plan) -> dict[str, Any] | None:
    if plan.options.no_access_log:
        return None
    return {"path": str(plan.layout.access_log), "max_bytes": 50_000_000, "backups": 3}


def _tls(options: Options) -> dict[str, str] | None:
    return {"certificate": str(options.tls_cert), "key": str(options.tls_key)} if options.tls_cert else None


def _stack(plan: Plan) -> dict[str, Any]:
    """What operator verbs need to know of a stack that was rendered; no secret is in it."""
    options = plan.options
    return {
        "version": __version__,
        "name": plan.layout.stack_name,
        "models": [
            {
                "model": model.options.model,
                "revision": model.options.revision,
                "names": model.names,
                # On Ray one server has all models, and each is still a model of its own.
                "servers": model.servers if plan.head is None else (plan.head.name,),
            }
            for model in plan.models
        ],
        "device": plan.device,
        "vllm_version": plan.vllm_version,
        "skipped_checks": list(plan.options.skip_checks),
        "door": {
            "scheme": options.scheme,
            "host": plan.host,
            "port": options.port,
            "key_required": not plan.open_to_all,
        },
        "admin_port": options.admin_port,
        "wedge_timeout": options.wedge_timeout,
        "drain_timeout": options.drain_timeout,
        "stop_seconds": plan.timings.stop_seconds,
        "workers": [
            {
                "name": worker.name,
                "address": str(worker.address),
                "gpus": worker.gpus,
                "cores": worker.cores,
            }
            for worker in plan.workers
        ],
        "upstreams": _upstreams(plan),
        "target": options.target,
        "joins": plan.ray.node.joins if plan.ray else None,
        "ray_ports": [options.ray_port, options.ray_dashboard_port] if plan.ray and plan.has_door else [],
    }


def _upstreams(plan: Plan) -> list[dict[str, str]]:
    return [{"name": upstream.name, "address": str(upstream.address)} for upstream in plan.upstreams]


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _fill(template: str, plan: Plan, **values: Any) -> str:
    return fill(template, plan=plan, layout=plan.layout, **values)


def fill(template: str, **values: Any) -> str:
    """Give the text of a template; what it names must be there."""
    return _environment().get_template(template).render(version=__version__, **values)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_directory()),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - configuration, not HTML; values are checked, never escaped
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def templates_directory() -> Path:
    """Find the templates: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"
