"""The API, compiled from proto/ at startup, connections to a cluster, and the details of its errors."""

import os
import sys
from pathlib import Path

import grpc
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_status import rpc_status

sys.path.append(str(Path(__file__).resolve().parents[2] / "proto"))
messages, services = grpc.protos_and_services("stoker/v1/inference.proto")


def add_connection_flags(flags):
    """Adds the flags that `channel` reads."""
    flags.add_argument("--endpoint", default="127.0.0.1:50051", metavar="ADDR", help="https://HOST:PORT speaks TLS")
    flags.add_argument("--tls-ca", metavar="FILE", help="CA of the cluster's certificate [default: those of gRPC]")
    flags.add_argument("--api-key-file", metavar="FILE", help="file with the API key [default: STOKER_API_KEY]")


def channel(flags, module=grpc):
    """Connects to the cluster; `module` is `grpc.aio` for asyncio. An API key is sent over TLS alone."""
    host = flags.endpoint.removeprefix("https://")
    key = Path(flags.api_key_file).read_text() if flags.api_key_file else os.environ.get("STOKER_API_KEY", "")
    if host == flags.endpoint:
        if key or flags.tls_ca:
            sys.exit("--endpoint: TLS and API keys, which are sent over TLS alone, need https://HOST:PORT")
        return module.insecure_channel(host)
    ca = Path(flags.tls_ca).read_bytes() if flags.tls_ca else None
    credentials = grpc.ssl_channel_credentials(ca)
    if key:
        bearer = grpc.access_token_call_credentials(key.strip())
        credentials = grpc.composite_channel_credentials(credentials, bearer)
    return module.secure_channel(host, credentials)


def explain(error: grpc.RpcError) -> str:
    """Returns the code, the message, the invalid fields and the retry delay of an error."""
    lines = [f"{error.code().name}: {error.details()}"]
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        bad, retry = BadRequest(), RetryInfo()
        if detail.Unpack(bad):
            lines += [f"  {v.field}: {v.description}" for v in bad.field_violations]
        elif detail.Unpack(retry):
            lines.append(f"  try again in {retry.retry_delay.ToTimedelta().total_seconds()} s")
    return "\n".join(lines)
