"""The S3 client of this process, requests that are more than one call of it, and what its errors mean."""

import functools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import boto3.session
import botocore.config
import botocore.configprovider
import botocore.exceptions
import botocore.session

from mnerqg.errors import one_line

BAD_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_PASSING_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError"}
UNREACHABLE = (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError)
NO_CREDENTIALS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.ProfileNotFound,
)

_READ_ATTEMPTS = 4
# Of requests whose answer is of no use any more after a minute.
_AT_ONCE = {"attempts": 4, "timeout_s": 5}
_AGAIN = "that may pass: run the same command again"


@dataclass(frozen=True, slots=True)
class S3Object:
    """An object as a listing shows it."""

    key: str
    size: int
    etag: str
    modified: str


@functools.cache
def s3_client(attempts: int = 6, timeout_s: float = 60, connections: int = 64) -> Any:
    """A boto3 S3 client, one per process and settings (clients do not pickle: call this where it is used).

    `attempts` counts the first one too; 5xx, throttling and broken connections are retried with back-off.
    """
    core = botocore.session.Session()
    config = botocore.config.Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        max_pool_connections=connections,
        connect_timeout=min(10, timeout_s),
        read_timeout=timeout_s,
    )
    endpoint = configured_endpoint(core)
    # A Session of its own, since boto3's default session must not be shared between threads.
    session = boto3.session.Session(botocore_session=core)
    return session.client("s3", endpoint_url=endpoint, config=config)


def configured_endpoint(session: botocore.session.Session) -> str | None:
    """The S3 endpoint that environment or profile name, None for AWS itself."""
    provider = botocore.configprovider.ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
    )
    endpoint: str | None = provider.provide()
    if endpoint:
        # Current SDKs, the one inside pyarrow among them, upload with a trailing checksum in chunked
        # encoding. S3 servers other than AWS answer that with 411 Length Required.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return endpoint


# ---- requests --------------------------------------------------------------------------------------


def list_objects(
    bucket: str, prefix: str, limit: int | None = None, *, recursive: bool = True
) -> Iterator[S3Object]:
    """The objects whose keys begin with `prefix`, in the order of their keys, at most `limit`.

    Without `recursive` those with a further slash are left out.
    """
    pages = s3_client().get_paginator("list_objects_v2")
    paging = {"MaxItems": limit, "PageSize": limit} if limit else {}
    folders = {} if recursive else {"Delimiter": "/"}
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, PaginationConfig=paging, **folders):
        for entry in page.get("Contents", []):
            modified = str(entry.get("LastModified"))
            yield S3Object(entry["Key"], entry["Size"], entry.get("ETag", ""), modified)


def read_object(bucket: str, key: str, span: tuple[int, int] | None = None) -> bytes:
    """An object's bytes, with a `span` those from the first number up to the second, which is larger.

    The client tries again only up to the headers; here, a body that ends early, too.
    """
    part = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
    attempt = 1
    while True:
        try:
            answer = s3_client().get_object(Bucket=bucket, Key=key, **part)
            # `with` on the body itself would give urllib3's, whose errors are others.
            with closing(answer["Body"]) as body:
                data: bytes = body.read()
                return data
        except (*UNREACHABLE, botocore.exceptions.IncompleteReadError):
            if attempt == _READ_ATTEMPTS:
                raise
            time.sleep(0.1 * 2**attempt)
            attempt += 1


def delete_objects(bucket: str, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Deletes objects as it is iterated over; gives key and error code of each that was not deleted."""
    for first in range(0, len(keys), 1000):  # the most that one request may name
        batch = [{"Key": key} for key in keys[first : first + 1000]]
        answer = s3_client().delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
        for failure in answer.get("Errors", []):
            yield failure["Key"], failure["Code"]


def read_with_etag(bucket: str, key: str) -> tuple[str, str] | None:
    """The text of an object and its ETag, None where there is no object; within seconds or not at all."""
    try:
        answer = s3_client(**_AT_ONCE).get_object(Bucket=bucket, Key=key)
        return answer["Body"].read().decode("utf-8", "replace"), answer["ETag"]
    except botocore.exceptions.ClientError as error:
        if error_answer(error)[0] == "NoSuchKey":
            return None
        raise


def write_if_etag(bucket: str, key: str, text: str, etag: str | None) -> str | None:
    """As `storage.write_if_etag`."""
    # Without its quotation marks: older Ceph gateways compare them, too.
    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag.strip('"')}
    try:
        answer = s3_client(**_AT_ONCE).put_object(
            Bucket=bucket, Key=key, Body=text.encode("utf-8"), **condition
        )
        return str(answer["ETag"])
    except botocore.exceptions.ClientError as error:
        code, status = error_answer(error)
        if status in (409, 412) or code == "NoSuchKey":
            return None
        raise


# ---- errors ----------------------------------------------------------------------------------------


def explain(uri: str, error: BaseException) -> str:
    """One line that says what an S3 error at `uri` means and what to do."""
    if isinstance(error, botocore.exceptions.ClientError):
        return _explain_answer(uri, error)
    if isinstance(error, NO_CREDENTIALS):
        return (
            f"{uri}: no usable AWS credentials ({error}); set AWS_PROFILE or AWS_ACCESS_KEY_ID and its secret"
        )
    if isinstance(error, UNREACHABLE):
        return (
            f"{uri}: the S3 endpoint does not answer ({one_line(error)}); check AWS_ENDPOINT_URL and the network, "
            "and run the same command again"
        )
    if isinstance(
        error, botocore.exceptions.IncompleteReadError | OSError
    ):  # OSError is smart_open's, of many reads
        return f"{uri}: reading breaks off again and again ({one_line(error)}); {_AGAIN}"
    return f"{uri}: {one_line(error)}"


def _explain_answer(uri: str, error: botocore.exceptions.ClientError) -> str:
    code, http_status = error_answer(error)
    if code in BAD_CREDENTIALS:
        return (
            f"{uri}: the store refuses the AWS credentials ({code}); check AWS_PROFILE or AWS_ACCESS_KEY_ID"
        )
    if code == "NoSuchBucket":
        return f"{uri}: the bucket does not exist; create it, or correct the URI or AWS_ENDPOINT_URL"
    if http_status == 404:
        return f"{uri} does not exist; check the URI"
    if http_status == 403:
        return f"{uri}: access denied ({code}); the AWS credentials in use lack the permission"
    if is_passing(code, http_status):
        return f"{uri}: the store answers {http_status} {code} again and again; {_AGAIN}"
    return f"{uri}: {one_line(error)}"


def is_passing(code: str, http_status: int) -> bool:
    """Whether the same request may be answered otherwise later."""
    return http_status == 429 or http_status >= 500 or code in _PASSING_CODES


def error_answer(error: botocore.exceptions.ClientError) -> tuple[str, int]:
    """Error code and HTTP status of an answer."""
    response: Any = error.response
    return (
        str(response.get("Error", {}).get("Code", "")),
        int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)),
    )
