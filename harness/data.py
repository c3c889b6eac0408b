"""Data sets and weights: fetched once, reused offline; synthetic where they cannot be reached."""

import hashlib
import http.client
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from harness.process import UserError, tell
from harness.terminal import duration

STALLED_SECONDS = 30.0  # without a byte, after which a connection is given up
BROKEN_OFF = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
ATTEMPTS = 5  # to go on with a download that brought nothing more in between
SLOW_SECONDS = 600.0  # left of a download, beyond which that is said


class DataUnreachable(Exception):
    """The real data is neither on disk nor to be had over the network."""


def choose_data(data: str, fetch: Callable[[], None]) -> str:
    """`real` once `fetch` has brought the data, else `synthetic` where `data` allows it.

    Raises:
        UserError: `data` is `real` and cannot be reached.
    """
    if data == "synthetic":
        return data
    # A download that stalls is a network failure too.
    socket.setdefaulttimeout(STALLED_SECONDS)
    try:
        fetch()
    except DataUnreachable as error:
        if data == "real":
            fix = "connect to the network, put the data there by hand, or use --data=synthetic"
            raise UserError(f"--data=real: {error}; {fix}") from None
        tqdm.write(f"{error}: measuring on synthetic data that costs the same work.")
        return "synthetic"
    return "real"


def require_reachable(url: str, timeout: float = 10.0) -> None:
    """Raises DataUnreachable unless the server of `url` says within `timeout` s that it has it."""
    problem = ["no answer within 10 seconds"]

    def ask():
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=timeout).close()
            problem[0] = None
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            problem[0] = f"{reason}{certificate_cure(reason)}"

    # In a thread, because a name look-up without network can hang for longer than the timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    if problem[0]:
        raise DataUnreachable(f"{url} cannot be reached ({problem[0]})")


def certificate_cure(reason) -> str:
    """What to do where a connection failed for want of certificates; else nothing."""
    if not isinstance(reason, ssl.SSLCertVerificationError):
        return ""
    if sys.platform == "darwin":  # python.org's installer leaves them out
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f'; run "/Applications/Python {version}/Install Certificates.command" once'
    return "; SSL_CERT_FILE must name a file with your network's certificates"


def from_hub(repo_id: str, repo_type: str, patterns: list[str], data_dir: Path) -> Path:
    """The folder with the files of a Hub repository that match `patterns`.

    What lies under `data_dir` whole is used without a word to the network; the rest is downloaded
    with a progress bar, and a download that broke off is resumed.

    Args:
        repo_id: such as `ethz/food101`.
        repo_type: `dataset` or `model`.
        patterns: such as `data/train-*.parquet`.

    Raises:
        DataUnreachable: the Hub does not answer, has no such repository, or breaks off.
        UserError: the files cannot be written to `data_dir`.
    """
    from huggingface_hub import get_token, hf_hub_url, snapshot_download

    # HTTPError is that of whichever HTTP library this version of the client builds on.
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        XetDownloadError,
    )

    def download(local_files_only: bool = False, token: bool | None = None) -> Path:
        folder = snapshot_download(
            repo_id,
            repo_type=repo_type,
            allow_patterns=patterns,
            cache_dir=data_dir / "hub",
            local_files_only=local_files_only,
            token=token,
        )
        return Path(folder)

    try:
        return download(local_files_only=True)
    except LocalEntryNotFoundError:
        pass
    # Asked first, because the Hub's client retries for minutes.
    require_reachable(hf_hub_url(repo_id, "README.md", repo_type=repo_type))
    try:
        try:
            return download()
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 403) or not get_token():
                raise
        # Public data needs none, but is refused to one that has expired.
        tqdm.write(
            "The Hugging Face token of this machine is refused and not used: renew it, or unset "
            "HF_TOKEN and run `hf auth logout`"
        )
        return download(token=False)
    except (HTTPError, XetDownloadError, OSError) as error:
        # The client's own errors are OSErrors too, but only the system's carry a number.
        if getattr(error, "errno", None):
            raise UserError(
                f"--data_dir={data_dir}: {repo_id} could not be put there ({error.strerror})"
            ) from None
        problem = str(error).partition("\n")[0]
        raise DataUnreachable(f"the download of {repo_id} broke off ({problem})") from None


def download(url: str, checksum: str | None, data_dir: Path) -> Path:
    """The file of `url` in `data_dir`, fetched once, with its check sum verified.

    A download that broke off goes on where it was, in this run or the next.

    Args:
        checksum: MD5 or SHA-256, as hexadecimal digits; None where nobody publishes one, and the
            reader must see whether the file is whole.

    Raises:
        DataUnreachable: it is not there and cannot be fetched.
        UserError: it is damaged, or cannot be written.
    """
    path = data_dir / url.rpartition("/")[2]
    try:
        if not path.exists():
            require_reachable(url)
            data_dir.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.part")
            fetch_all(url, partial)
            partial.rename(path)
        if not checksum:
            return path
        with path.open("rb") as file:
            algorithm = {32: "md5", 64: "sha256"}[len(checksum)]
            found = hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise UserError(
            f"--data_dir={data_dir}: {path.name} cannot be put there ({error.strerror})"
        ) from None
    if found != checksum:
        raise UserError(
            f"--data_dir={data_dir}: {path.name} is damaged (wrong check sum); delete {path} and "
            "try again"
        )
    return path


def fetch_all(url: str, partial: Path) -> None:
    """Fetch what `partial` lacks of the file of `url`, again when the connection breaks off.

    Raises:
        DataUnreachable: five attempts in a row brought nothing.
        OSError: it cannot be written.
    """
    failures = 0
    with tqdm(desc=url.rpartition("/")[2], unit="B", unit_scale=True, disable=None) as bar:
        while failures < ATTEMPTS:
            before = partial.stat().st_size if partial.exists() else 0
            try:
                if fetch_rest(url, partial, before, bar):
                    return
                problem = "the server ended it too early"
            except BROKEN_OFF as error:
                problem = str(error)
            after = partial.stat().st_size if partial.exists() else 0
            failures = 0 if after > before else failures + 1
            time.sleep(failures)
    raise DataUnreachable(
        f"the download of {url} broke off at {after / 1e6:.0f} MB ({problem}); it goes on from "
        "there next time"
    )


def fetch_rest(url: str, partial: Path, have: int, bar) -> bool:
    """Fetch from byte `have` on; whether the file is whole then."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=STALLED_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left; the check sum tells whether it is the file
            return True
        raise
    with answer, partial.open("ab" if answer.status == 206 else "wb") as file:
        have = file.tell()
        rest = answer.headers.get("Content-Length")
        total = have + int(rest) if rest else None
        bar.total, bar.n = total, have
        began, first, said = time.monotonic(), have, False
        while block := answer.read(1 << 16):
            file.write(block)
            have += len(block)
            bar.update(len(block))
            seconds = time.monotonic() - began
            if total and seconds > 10:
                rate = (have - first) / seconds
                left = (total - have) / rate
                pace = f"{rate / 1e6:.2f} MB/s, {duration(left)} left"
                so_far = f"{have / 1e6:.0f} of {total / 1e6:.0f} MB, {pace}"
                tell(f"downloading {partial.stem}", so_far)
                if left > SLOW_SECONDS and not said:
                    tqdm.write(
                        f"{url} is slow: {pace}; --data=synthetic needs none of it, and what is "
                        "here already is kept"
                    )
                    said = True
    return total is None or have == total


def require_samples(what: str, found: int, whole: int, remains: Path, data_dir: Path) -> None:
    """Raises UserError unless all samples are there: a download that broke off leaves fewer.

    Args:
        what: such as `Food101`.
        remains: the folder to delete before the rest is fetched.
    """
    if found != whole:
        raise UserError(
            f"--data_dir={data_dir}: {what} has {found:,} samples there instead of {whole:,}; "
            f"delete {remains} and try again"
        )


def unreadable(what: str, error: Exception, remains: Path, data_dir: Path) -> UserError:
    """The error to raise when `what` lies in the data directory and cannot be used.

    Args:
        what: such as `Food101`.
        error: what its library says.
        remains: the folder or file to delete before it is fetched anew.
    """
    problem = str(error.__cause__ or error).partition("\n")[0]
    return UserError(
        f"--data_dir={data_dir}: {what} cannot be read ({problem}); delete {remains} and try again"
    )
