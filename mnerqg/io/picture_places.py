"""Which places a URI from a stranger's post may mean, and whether they may be read.

A URI is read as it is written and then as a browser or curl would: trimmed, percent-decoded, with slashes for
backslashes. Every reading has to lie under a configured root.
"""

import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import idna

from mnerqg.config_jobs import PicturesConfig
from mnerqg.errors import StorageError, one_line
from mnerqg.io.picture_text import BLANKS
from mnerqg.io.storage import S3Place, absolute, join, locate, scheme_of
from mnerqg.schema import ImageStatus

_WEB = ("http", "https")
_NOT_NAMES = re.compile(
    r"(file|s3[an]?|gs|https?|ftps?|data|blob|javascript|about|mailto|urn|cid|content):(?!//)", re.IGNORECASE
)
"""With these no name of a file begins, as with IMG:1.jpg one may."""
_SHOWN_CHARACTERS = 200


class PictureError(Exception):
    """Why a picture cannot be had. `transient`: trying again later may help."""

    def __init__(self, status: ImageStatus, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.status: ImageStatus = status
        self.transient = transient


@dataclass(frozen=True, slots=True)
class WebPlace:
    """A picture on the web; `target` is path and query, percent-encoded."""

    scheme: str
    host: str
    port: int
    target: str
    named: bool  # a root names exactly this host, not only a domain above it

    @property
    def authority(self) -> str:
        """Host and, where it is not the scheme's own, port, as a URL and the header Host have them."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _default_port(self.scheme) else f"{name}:{self.port}"


Place = Path | S3Place | WebPlace


def check_roots(roots: Sequence[str]) -> None:
    """Raises StorageError for a root that is no place at all, so that no run begins with it."""
    for root in roots:
        if scheme_of(root) in _WEB:
            _check_web_root(root)
        else:
            locate(root)


def with_absolute_roots(config: PicturesConfig, archive_folders: tuple[str, ...]) -> PicturesConfig:
    """The settings with absolute roots; without any, pictures lie in the archive's own folders.

    Raises:
        StorageError: see `check_roots`.
    """
    roots = tuple(root if scheme_of(root) in _WEB else absolute(root) for root in config.roots)
    check_roots(roots)
    return config.model_copy(update={"roots": roots or archive_folders})


def places_of(uri: str, config: PicturesConfig) -> list[Place]:
    """Where the picture may lie, the likeliest place first; one at least. Raises PictureError 'forbidden'."""
    if not config.roots:
        raise PictureError(
            "forbidden", "no picture root is configured; name the ones that pictures lie under"
        )
    found: dict[Place, None] = {}
    refusal: PictureError | None = None
    for reading in dict.fromkeys(_readings(uri)):
        for place in _absolutes(reading, config.roots):
            try:
                _refuse_tricks(reading)
                found[_allowed(place, config)] = None
            except PictureError as error:
                refusal = refusal or error
    if not found and refusal:
        raise refusal
    return list(found)


def shown(place: Place | str) -> str:
    """A place for an error: short, and without what a URL may have in it that is secret."""
    if isinstance(place, S3Place):
        text = f"s3://{place.bucket}/{place.key}"
    elif isinstance(place, WebPlace):
        text = f"{place.scheme}://{place.authority}{place.target.partition('?')[0]}"
    else:
        text = re.sub(r"//[^/@]*@", "//…@", str(place))
        text = text.partition("?")[0] if scheme_of(text) in _WEB else text
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[: _SHOWN_CHARACTERS // 2]}…{text[-_SHOWN_CHARACTERS // 2 :]}"
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return f"<{one_line(text.replace('<', '%3C').replace('>', '%3E').replace('; ', ';%20'))}>"


# ---- readings ------------------------------------------------------------------------------------


def _readings(uri: str) -> Iterator[str]:
    """The URI as it is written, and as it may be meant."""
    trimmed = uri.strip(BLANKS)
    scheme = scheme_of(trimmed)
    if scheme in _WEB:
        yield trimmed
        return
    yield uri
    text = re.sub(r"^file:(?://(?:localhost)?)?/(?!/)", "file:///", trimmed, flags=re.IGNORECASE)
    yield text
    if scheme == "s3":
        bucket, slash, key = text.partition("://")[2].partition("/")
        yield f"s3://{bucket}{slash}{urllib.parse.unquote(key)}"
        return
    text = text.replace("\\", "/")
    for reading in (text, re.split(r"[?#]", text)[0]):
        if reading.strip(BLANKS):
            yield reading
            if scheme_of(reading) != "file":  # there it is done later, and never twice
                yield urllib.parse.unquote(reading)


def _refuse_tricks(uri: str) -> None:
    if re.search(r"[\x00-\x1f\x7f]", uri):
        raise PictureError("forbidden", "the URI contains control characters")
    if _NOT_NAMES.match(uri):
        raise PictureError("forbidden", "the URI has a scheme without //")
    decoded = uri
    for _ in range(5):
        if any(part.partition(";")[0].strip() == ".." for part in re.split(r"[/\\]", decoded)):
            raise PictureError("forbidden", "the URI climbs with '..'")
        previous, decoded = decoded, urllib.parse.unquote(decoded)
        if decoded == previous:
            return
    raise PictureError("forbidden", "the URI is percent-encoded over and over")


def _absolutes(reading: str, roots: Sequence[str]) -> Iterator[str]:
    """A reading below each root where it is relative; on the web `//host/path`, and `/path` if no root is a folder."""
    web = [urllib.parse.urlsplit(root) for root in roots if scheme_of(root) in _WEB]
    if scheme_of(reading):
        yield reading
    elif not reading.startswith("/"):
        for root in roots:
            yield join(root, reading.removeprefix("./"))
    elif reading.startswith("//") and web:
        for parts in web:
            yield f"{parts.scheme}:{reading}"
    elif any(scheme_of(root) in ("", "file") for root in roots) or not web:
        yield reading
    else:
        for parts in web:
            yield f"{parts.scheme}://{parts.netloc}{reading}"


def _allowed(uri: str, config: PicturesConfig) -> Place:
    """Where to read an absolute URI, or a PictureError 'forbidden'."""
    scheme = scheme_of(uri) or "file"
    if scheme not in config.schemes:
        raise PictureError("forbidden", f"pictures are read over {', '.join(config.schemes)} only")
    if scheme in _WEB:
        return _allowed_web(uri, config)
    try:
        place = locate(uri)
    except StorageError as error:
        raise PictureError("forbidden", str(error)) from error
    roots = [locate(root) for root in config.roots if scheme_of(root) not in _WEB]
    if isinstance(place, Path):
        # The real path is also what is opened, so that a link inside a root cannot lead out of it.
        place = Path(os.path.realpath(place))
        inside = any(place.is_relative_to(os.path.realpath(root)) for root in roots if isinstance(root, Path))
    else:
        inside = bool(place.key) and any(
            place.bucket == root.bucket and place.key.startswith(root.prefix)
            for root in roots
            if isinstance(root, S3Place)
        )
    if not inside:
        raise PictureError("forbidden", "the picture is not under a configured root")
    return place


# ---- the web -------------------------------------------------------------------------------------


def _allowed_web(uri: str, config: PicturesConfig) -> WebPlace:
    try:
        asked = urllib.parse.urlsplit(uri.replace("\\", "/"))
        port = asked.port or _default_port(asked.scheme)
        host = _ascii_host(asked.hostname or "")
    except ValueError as error:
        raise PictureError("forbidden", f"not a proper URL: {one_line(error)}") from error
    if asked.username is not None or asked.password is not None:
        raise PictureError("forbidden", "the URL has user information")
    path = _encoded(asked.path)
    matches = []
    for root in (urllib.parse.urlsplit(root) for root in config.roots if scheme_of(root) == asked.scheme):
        name = _root_host(root.hostname or "")
        prefix = _encoded(root.path).rstrip("/") + "/"
        same_port = port == (root.port or _default_port(root.scheme))
        if same_port and path.startswith(prefix) and (host == name or _is_below(host, name)):
            matches.append(host == name)
    if not matches:
        raise PictureError("forbidden", "the picture is not under a configured root")
    target = path + (f"?{_encoded(asked.query)}" if asked.query else "")
    return WebPlace(asked.scheme, host, port, target, named=any(matches))


def _encoded(part: str) -> str:
    """A path or query as it goes over the wire: what is encoded stays, blanks and letters beyond ASCII get encoded."""
    return urllib.parse.quote(part, safe="/%?:@!$&'()*+,;=-._~[]|", errors="replace")


def _ascii_host(host: str) -> str:
    """The host in lower case and, beyond ASCII, in Punycode. Raises ValueError."""
    name = host.lower() if host.isascii() else idna.encode(host, uts46=True).decode()
    if not re.fullmatch(r"[a-z0-9._:-]*", name):
        raise ValueError(f"the host {host!r} has characters that no host has")
    return name


def _root_host(host: str) -> str:
    """The host of a root, which may begin with `*.`. Raises ValueError."""
    wildcard = "*." if host.startswith("*.") else ""
    return wildcard + _ascii_host(host.removeprefix("*."))


def _check_web_root(root: str) -> None:
    try:
        parts = urllib.parse.urlsplit(root)
        proper = bool(_root_host(parts.hostname or "")) and parts.port != 0
    except ValueError:
        proper = False
    if not proper:
        raise StorageError(f"pictures: the root {root} is not a proper URL; write https://host/prefix")


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _is_below(host: str, pattern: str) -> bool:
    return pattern.startswith("*.") and host.endswith(pattern[1:])
