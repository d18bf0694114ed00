"""Environment names a strategy may not set: each would let it, or a mistake in it, bend what the manager set up."""

from __future__ import annotations

_EXACT = {
    "PATH": "it decides which programs run",
    "HOME": "the sandbox sets it",
    "USER_ID": "it is the strategy's identity; use user_id",
    "USER": "the sandbox sets it",
    "LOGNAME": "the sandbox sets it",
    "SHELL": "it decides which programs run",
    "HOSTNAME": "the sandbox sets it",
    "PWD": "the sandbox sets it",
    "TMPDIR": "only /tmp can be written",
    "IFS": "it changes how shells read commands",
    "ENV": "shells run the file it names",
    "BASH_ENV": "shells run the file it names",
    "GCONV_PATH": "libraries are loaded from it",
    "LOCPATH": "libraries are loaded from it",
    "NLSPATH": "libraries are loaded from it",
    "HOSTALIASES": "it changes how names are resolved",
    "GLIBC_TUNABLES": "it changes the C library",
    "OPENSSL_CONF": "libraries are loaded from it",
    "OPENSSL_MODULES": "libraries are loaded from it",
    "OPENSSL_ENGINES": "libraries are loaded from it",
    "SSL_CERT_FILE": "it decides whom to trust",
    "SSL_CERT_DIR": "it decides whom to trust",
    "REQUESTS_CA_BUNDLE": "it decides whom to trust",
}

_PREFIXES = {
    "LD_": "the dynamic linker obeys it",
    "PYTHON": "the interpreter obeys it",
    "DESK_": "the desk sets these",
    "GRPC_": "it steers the connection to the desk",
    "DOCKER_": "it steers a container engine",
}


def reason(name: str) -> str:
    """Why this name is reserved (in any case of letters); empty when it is free."""
    upper = name.upper()
    if upper.endswith("_PROXY"):
        return "it would send the desk's traffic elsewhere"
    for prefix, why in _PREFIXES.items():
        if upper.startswith(prefix):
            return why
    return _EXACT.get(upper, "")
