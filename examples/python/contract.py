"""The API, compiled from proto/ at startup, and the details of its errors."""

import sys
from pathlib import Path

import grpc
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_status import rpc_status

sys.path.append(str(Path(__file__).resolve().parents[2] / "proto"))
messages, services = grpc.protos_and_services("stoker/v1/inference.proto")


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
