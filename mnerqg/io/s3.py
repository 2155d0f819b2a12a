"""The S3 client of this process and what its errors mean, for storage and pictures alike."""

import functools
import os
from typing import Any

import boto3.session
import botocore.config
import botocore.configprovider
import botocore.exceptions
import botocore.session

BAD_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
UNREACHABLE = (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError)
NO_CREDENTIALS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.ProfileNotFound,
)


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


def explain(uri: str, error: BaseException) -> str:
    """One line that says what an S3 error at `uri` means and what to do."""
    if isinstance(error, botocore.exceptions.ClientError):
        return _explain_answer(uri, error)
    if isinstance(error, NO_CREDENTIALS):
        return (
            f"{uri}: no usable AWS credentials ({error}); set AWS_PROFILE or AWS_ACCESS_KEY_ID and its secret"
        )
    if isinstance(error, UNREACHABLE):
        return f"{uri}: the S3 endpoint does not answer ({error}); check AWS_ENDPOINT_URL and the network"
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
    return f"{uri}: {one_line(error)}"


def error_answer(error: botocore.exceptions.ClientError) -> tuple[str, int]:
    """Error code and HTTP status of an answer."""
    response: Any = error.response
    return (
        str(response.get("Error", {}).get("Code", "")),
        int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)),
    )


def one_line(error: BaseException) -> str:
    """The error's message without line breaks, or its kind where it has none."""
    return " ".join(f"{error}".split())[:300] or type(error).__name__
