"""How a channel to a service is set up."""

import json

from fluxsmith._http import is_loopback
from fluxsmith.policies import RetryPolicy
from fluxsmith.v1 import encoder_pb2, trainer_pb2

_MAX_MESSAGE_BYTES = 8 * 1024 * 1024


def channel_options(address: str, retry: RetryPolicy) -> list[tuple[str, str | int]]:
    """Return the options of gRPC for a channel to the address."""
    host = address.rpartition(":")[0]
    methods = [{"name": [{}], **_retries(retry)}, {"name": _streams()}]
    return [
        ("grpc.service_config", json.dumps({"methodConfig": methods})),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # The default doubles up to two minutes, during which a service that is back would go unnoticed.
        ("grpc.initial_reconnect_backoff_ms", 250),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Notices a host that vanished without a word. Servers refuse pings more often than every five minutes.
        ("grpc.keepalive_time_ms", 310_000),
        ("grpc.enable_http_proxy", 0 if is_loopback(host) else 1),
    ]


def _retries(retry: RetryPolicy) -> dict[str, object]:
    """Return how gRPC repeats calls. All are safe to repeat: reads are, and changing calls carry a request_id."""
    if retry.attempts == 1:
        return {}
    return {
        "retryPolicy": {
            "maxAttempts": retry.attempts,
            "initialBackoff": f"{retry.first_delay_s:.3f}s",
            "maxBackoff": f"{retry.longest_delay_s:.3f}s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
    }


def _streams() -> list[dict[str, str]]:
    """Return the names of calls that gRPC is not to repeat, since they resume by themselves: those that stream answers.

    Repeated by gRPC (1.85, outside asyncio), one that had no answer yet when its server was killed never ends.
    """
    services = [*encoder_pb2.DESCRIPTOR.services_by_name.values(), *trainer_pb2.DESCRIPTOR.services_by_name.values()]
    return [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if method.server_streaming
    ]
