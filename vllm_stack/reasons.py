"""The reasons of the settings that nobody but us would think of."""

WHY = {
    "restart_delay": "seconds between a failure and the next start",
    "restart_delay_max": "if longer, the delay doubles with every failure in a row, up to this",
    "start_timeout": "a server that is not ready by then is killed and started again; 0 waits for ever",
    "start_stagger": "auto: the first worker fills the caches alone, the others follow when it is ready",
    "wedge_timeout": "a server with requests in flight whose engine makes no step and computes nothing for "
    "so many seconds is killed and started again; 0 switches this off",
    "engine": "names what the workers run, so that they know whether its caches are warm",
    "cores": "the cores beside its GPUs, to which the server is pinned; none: it may run on all",
    "gpu_patience": "seconds a start waits for the memory of its GPUs; then vLLM is the judge",
    "settle": "a delayed start waits at least this long, so that supervisord books the start as good "
    "and never gives the worker up",
    "stop_grace": "seconds from TERM to KILL: vLLM's drain, 5 s for its engine manager, 5 s for its "
    "workers, 5 s of slack",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "longer than the proxy keeps an idle connection, so that the "
    "worker never hangs up on a request that is on its way",
    "VLLM_PROCESS_NAME_PREFIX": "names the owner in ps and nvidia-smi, and lets a later start find "
    "engines that an earlier life left behind",
    "proxy_processes": "one for two servers, on an eighth of the CPU cores at most",
    "worker_stop_wait": "supervisord's patience with a worker: the wrapper must always be the first to kill",
    "proxy_stop_wait": "supervisord's patience with the proxy: the drain, and 5 s",
    "unit_stop_wait": "systemd's patience with supervisord: the proxy's and the workers' stops, and 15 s",
}
"""Why each setting that is derived is as it is: in the rendered files, and in `vllm-stack plan`."""
