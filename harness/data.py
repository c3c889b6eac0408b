"""Data sets and weights: fetched once, reused offline; synthetic where they cannot be reached."""

import hashlib
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from harness.process import UserError


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
    socket.setdefaulttimeout(30)
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
            problem[0] = str(getattr(error, "reason", error))

    # In a thread, because a name look-up without network can hang for longer than the timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    if problem[0]:
        raise DataUnreachable(f"{url} cannot be reached ({problem[0]})")


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
    from huggingface_hub import hf_hub_url, snapshot_download

    # HTTPError is that of whichever HTTP library this version of the client builds on.
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, XetDownloadError

    def download(local_files_only: bool) -> Path:
        folder = snapshot_download(
            repo_id,
            repo_type=repo_type,
            allow_patterns=patterns,
            cache_dir=data_dir / "hub",
            local_files_only=local_files_only,
        )
        return Path(folder)

    try:
        return download(local_files_only=True)
    except LocalEntryNotFoundError:
        pass
    # Asked first, because the Hub's client retries for minutes.
    require_reachable(hf_hub_url(repo_id, "README.md", repo_type=repo_type))
    try:
        return download(local_files_only=False)
    except (HTTPError, XetDownloadError, OSError) as error:
        # The client's own errors are OSErrors too, but only the system's carry a number.
        if getattr(error, "errno", None):
            raise UserError(
                f"--data_dir={data_dir}: {repo_id} could not be put there ({error.strerror})"
            ) from None
        problem = str(error).partition("\n")[0]
        raise DataUnreachable(f"the download of {repo_id} broke off ({problem})") from None


def download(url: str, sha256: str, data_dir: Path) -> Path:
    """The file of `url` in `data_dir`, fetched once, with its check sum verified.

    Raises:
        DataUnreachable: the server does not answer, or breaks off.
        UserError: it cannot be written to `data_dir`, or its check sum is wrong.
    """
    path = data_dir / url.rpartition("/")[2]
    try:
        if not path.exists():
            require_reachable(url)
            data_dir.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.part")
            with tqdm(desc=path.name, unit="B", unit_scale=True, disable=None) as bar:

                def progress(blocks: int, block_size: int, total: int):
                    bar.total = total if total > 0 else None
                    bar.update(blocks * block_size - bar.n)

                urllib.request.urlretrieve(url, partial, progress)
            partial.rename(path)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        raise DataUnreachable(f"the download of {url} broke off ({error})") from None
    except OSError as error:
        raise UserError(
            f"--data_dir={data_dir}: {path.name} cannot be put there ({error.strerror})"
        ) from None
    if found != sha256:
        raise UserError(f"{path} is damaged (wrong check sum); delete it and try again")
    return path


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
