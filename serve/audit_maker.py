"""A request → an audit: its model's version fixed, its pictures found or unpacked, its job begun.

Whatever fails leaves no folder behind. Reading the request is left to `audit_body`.
"""

import logging
import shutil
from pathlib import Path

from serve.archives import ArchiveError, ArchiveLimits, Unpacked, unpack
from serve.audit_body import AuditBody
from serve.audit_checks import ModelFacts, check_options, check_pictures, read_model_facts
from serve.audit_folder import PICTURES, Request
from serve.audits import Audits, new_id, now
from serve.models import chosen_model, current_folder, served_models
from serve.problems import ProblemError
from serve.roots import Place, RootError, Roots
from serve.settings import Settings

logger = logging.getLogger("ray.serve")


class AuditMaker:
    """Makes audits; blocks while it does."""

    def __init__(self, settings: Settings, audits: Audits) -> None:
        self.settings, self.audits = settings, audits
        self.roots = Roots([r.strip() for r in settings.audit_roots.split(",") if r.strip()])

    def __call__(self, body: AuditBody) -> str:
        """Make an audit; returns its id.

        Raises:
            ProblemError: 403, 422 or 503; nothing is left.
            JobServerError: no job can be started; nothing is left.
        """
        # Fixed here, so that an audit goes on with the same version after another is promoted.
        served = served_models(self.settings.model)
        name = chosen_model(served, body.fields.model)
        model = read_model_facts(name, current_folder(served[name]))
        check_options(body.fields.options(), model.layers)
        if body.archive is None:
            assert body.images is not None
            return self._of_address(body, model, self._place(body.images))
        name = new_id()
        incoming = self._incoming(name)
        try:
            unpacked = self._unpack(body, incoming / PICTURES)
            pictures = str(self.audits.place(name).resolve() / PICTURES)
            place = Place(address=pictures, inside=pictures)
            request = self._request(name, body, model, place, unpacked)
            self.audits.add(request, incoming)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)  # if all went well, it has another name
        return name

    def _of_address(self, body: AuditBody, model: ModelFacts, place: Place) -> str:
        name = new_id()
        request = self._request(name, body, model, place, None)
        self.audits.add(request, self._incoming(name))
        return name

    def _incoming(self, name: str) -> Path:
        try:
            return self.audits.incoming(name)
        except OSError:
            logger.exception("the folder of audits (setting `state`) cannot be written")
            raise ProblemError(503, "The server cannot keep audits now.") from None

    def _request(
        self,
        name: str,
        body: AuditBody,
        model: ModelFacts,
        place: Place,
        unpacked: Unpacked | None,
    ) -> Request:
        return Request(
            id=name,
            created=now(),
            title=body.fields.title,
            model=model.id,
            version=model.version,
            model_folder=model.folder,
            images=body.images,
            address=place.address,
            inside=place.inside,
            pictures=unpacked.pictures if unpacked else None,
            ignored=unpacked.ignored if unpacked else None,
            options=body.fields.options().model_dump(),
            max_pixels=self.settings.max_pixels,
            workers=self.settings.audit_workers,
            cpus=self.settings.audit_threads,
            gpus=self.settings.audit_gpus,
        )

    def _place(self, images: str) -> Place:
        try:
            place = self.roots.place(images)
        except RootError as error:
            raise ProblemError(403, str(error), "images") from None
        check_pictures(place)
        return place

    def _unpack(self, body: AuditBody, folder: Path) -> Unpacked:
        limits = ArchiveLimits(
            pictures=self.settings.max_archive_pictures,
            entries=4 * self.settings.max_archive_pictures,
            bytes=self.settings.max_unpacked_bytes,
        )
        assert body.archive is not None
        try:
            return unpack(body.archive, folder, limits)
        except ArchiveError as error:
            raise ProblemError(422, f"archive: {error}.", "archive") from None
        except OSError:
            logger.exception("an archive cannot be unpacked")
            raise ProblemError(503, "The server has no room for the archive now.") from None
