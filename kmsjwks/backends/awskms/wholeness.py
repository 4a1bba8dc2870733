"""Answers that were cut short, or are nobody's who speaks for AWS KMS. botocore takes either for
an empty answer: a list of keys without keys, the tags of a key that has none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError


def refuse_broken_answers(client: Any) -> None:
    """``client``: boto3's, of AWS KMS. From now on it raises ConnectionClosedError where the
    connection ended within an answer, and ResponseParserError where a success is no JSON object
    (event before-parse, "Botocore Events")."""
    url = client.meta.endpoint_url

    def check(operation_model: Any, response_dict: Mapping[str, Any], **_: Any) -> None:
        if _is_cut_short(response_dict):
            raise boto.ConnectionClosedError(endpoint_url=url)
        answers = operation_model.output_shape is not None
        if answers and response_dict["status_code"] == 200 and not _is_object(response_dict):
            raise ResponseParserError("no JSON object")

    client.meta.events.register("before-parse.kms", check)


def _is_cut_short(response: Mapping[str, Any]) -> bool:
    headers = response["headers"]
    length = str(headers.get("content-length", ""))
    if "content-encoding" in headers or not length.isdecimal():
        return False
    return len(response["body"]) < int(length)


def _is_object(response: Mapping[str, Any]) -> bool:
    try:
        return isinstance(json.loads(response["body"]), dict)
    except ValueError:
        return False
