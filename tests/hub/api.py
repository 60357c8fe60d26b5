"""The loopback Hub's calls."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.hub.cards import problems
from tests.hub.repositories import Commit, Repository, User, blob_id, is_large, pointer

if TYPE_CHECKING:
    from tests.hub.server import Hub

PREFIXES = {"model": "", "dataset": "datasets/"}
KINDS = {"models": "model", "datasets": "dataset"}
PLURALS = {kind: plural for plural, kind in KINDS.items()}


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, text: str = "", code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(text)
        self.status, self.text = status, text
        named = {"X-Error-Code": code} if code else {}
        self.headers = {**named, **({"X-Error-Message": text} if text else {}), **(headers or {})}

    def answer(self) -> Response:
        return JSONResponse({"error": self.text}, self.status, headers=self.headers)


def application(hub: Hub) -> Starlette:
    """The calls as a Starlette application."""
    calls = Calls(hub)
    repo = "/api/{plural}/{owner}/{name}"

    def route(path: str, call, *methods: str) -> Route:
        async def answer(request: Request) -> Response:
            try:
                return await call(request)
            except Refusal as refusal:
                return refusal.answer()

        return Route(path, answer, methods=list(methods or ("GET",)))

    return Starlette(
        routes=[
            route("/api/whoami-v2", calls.whoami),
            route("/api/repos/create", calls.create, "POST"),
            route("/api/validate-yaml", calls.validate, "POST"),
            route(f"{repo}/preupload/{{revision}}", calls.preupload, "POST"),
            route(f"{repo}/commit/{{revision}}", calls.commit, "POST"),
            route(f"{repo}/branch/{{branch}}", calls.branch, "POST"),
            route(f"{repo}/paths-info/{{revision}}", calls.paths_info, "POST"),
            route(f"{repo}/tree/{{revision}}", calls.tree),
            route(f"{repo}/tree/{{revision}}/{{folder:path}}", calls.tree),
            route(f"{repo}/auth-check", calls.auth_check),
            route(f"{repo}/revision/{{revision}}", calls.info),
            route(repo, calls.info),
            route("/lfs/{oid}", calls.receive, "PUT"),
            route("/datasets/{owner}/{name}.git/info/lfs/objects/batch", calls.batch, "POST"),
            route("/{owner}/{name}.git/info/lfs/objects/batch", calls.batch, "POST"),
            route("/datasets/{owner}/{name}/resolve/{revision}/{file:path}", calls.file, "GET", "HEAD"),
            route("/{owner}/{name}/resolve/{revision}/{file:path}", calls.file, "GET", "HEAD"),
        ]
    )


class Calls:
    """What each call does."""

    def __init__(self, hub: Hub):
        self.hub = hub

    # -------------------------------------------------------------------------------------------- who may do what

    def user(self, request: Request) -> User | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def writer(self, request: Request, name: str, what: str) -> User:
        user = self.user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if user.role == "read" or not user.owns(name):
            raise Refusal(403, f'You don\'t have the rights to {what} under the namespace "{name.split("/")[0]}"')
        return user

    def repository(self, request: Request, *, files: bool = False) -> Repository:
        user, parameters = self.user(request), request.path_params
        kind = KINDS.get(
            parameters.get("plural", ""), "dataset" if request.url.path.startswith("/datasets/") else "model"
        )
        name = f"{parameters['owner']}/{parameters['name']}"
        found = self.hub.repositories.get((kind, name))
        if found is None or (found.private and not (user and user.owns(name))):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if files and found.gated and not (user and (user.owns(name) or user.name in found.accepted)):
            raise Refusal(403 if user else 401, f"Access to {kind} {name} is restricted", "GatedRepo")
        return found

    def commit_of(self, request: Request, repository: Repository) -> Commit:
        found = repository.at(request.path_params.get("revision", "main"))
        if found is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return found

    async def whoami(self, request: Request) -> Response:
        user = self.user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": org} for org in user.orgs]
        token = {"displayName": "a token", "role": user.role}
        return JSONResponse({"type": "user", "name": user.name, "orgs": orgs, "auth": {"accessToken": token}})

    async def auth_check(self, request: Request) -> Response:
        self.repository(request, files=True)
        return Response()

    # -------------------------------------------------------------------------------------------- what is written

    async def create(self, request: Request) -> Response:
        asked = await request.json()
        kind, user = asked.get("type", "model"), self.user(request)
        name = f"{asked['organization'] or (user and user.name)}/{asked['name']}"
        self.writer(request, name, f"create a {kind}")
        url = f"{self.hub.address}/{PREFIXES[kind]}{name}"
        if (kind, name) in self.hub.repositories:
            return JSONResponse({"error": f"You already created this {kind} repo", "url": url}, 409)
        self.hub.add(kind, name, private=asked.get("visibility") == "private")
        return JSONResponse({"url": url, "name": name})

    async def validate(self, request: Request) -> Response:
        asked = await request.json()
        found = problems(asked["content"], asked["repoType"])
        errors = [{"message": text} for text in found]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    async def branch(self, request: Request) -> Response:
        repository, asked = self.repository(request), await request.json()
        self.writer(request, repository.name, "write")
        name = request.path_params["branch"]
        if name in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[name] = repository.at(asked.get("startingPoint", "main")).oid
        return JSONResponse({})

    async def preupload(self, request: Request) -> Response:
        repository, asked = self.repository(request), await request.json()
        self.writer(request, repository.name, "write")
        there = self.commit_of(request, repository).files

        def mode(file: dict[str, Any]) -> dict[str, Any]:
            name, old = file["path"], there.get(file["path"])
            large = is_large(name, file["size"])
            oid = old and (hashlib.sha256(old).hexdigest() if large else blob_id(old))
            return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

        return JSONResponse({"files": [mode(file) for file in asked["files"]]})

    async def batch(self, request: Request) -> Response:
        repository, asked = self.repository(request), await request.json()
        self.writer(request, repository.name, "write")

        def action(file: dict[str, Any]) -> dict[str, Any]:
            if file["oid"] in self.hub.large:
                return file
            return {**file, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{file['oid']}?X-Signature=secret"}}}

        return JSONResponse({"transfer": "basic", "objects": [action(file) for file in asked["objects"]]})

    async def receive(self, request: Request) -> Response:
        data, oid = await request.body(), request.path_params["oid"]
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "The content does not match its hash")
        self.hub.large[oid] = data
        return Response()

    async def commit(self, request: Request) -> Response:
        repository = self.repository(request)
        self.writer(request, repository.name, "write")
        branch = request.path_params["revision"]
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        header, added, removed = lines[0]["value"], {}, []
        if header.get("parentCommit") not in (None, self.commit_of(request, repository).oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for key, value in ((line["key"], line["value"]) for line in lines[1:]):
            if key == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise Refusal(400, f"LFS pointer of {value['path']} points to a file that does not exist")
                added[value["path"]] = self.hub.large[value["oid"]]
            else:
                removed.append(value["path"])
        made = repository.commit(branch, header["summary"], added, tuple(removed))
        url = f"{self.hub.address}/{PREFIXES[repository.kind]}{repository.name}/commit/{made.oid}"
        return JSONResponse({"success": True, "commitOid": made.oid, "commitUrl": url})

    # -------------------------------------------------------------------------------------------- what is read

    async def info(self, request: Request) -> Response:
        repository = self.repository(request)
        commit = self.commit_of(request, repository)
        card = re.match(r"---\n(.*?)\n---", commit.files.get("README.md", b"").decode(), re.DOTALL)
        with_blobs = request.query_params.get("blobs") in ("true", "True", "1")
        siblings = [
            {"rfilename": name, **(_blob(name, data) if with_blobs else {})} for name, data in commit.files.items()
        ]
        found = {
            "id": repository.name,
            "sha": commit.oid,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "siblings": siblings,
            "tags": [],
            "cardData": yaml.safe_load(card.group(1)) if card else None,
        }
        return JSONResponse(found)

    async def tree(self, request: Request) -> Response:
        commit = self.commit_of(request, self.repository(request, files=True))
        folder = request.path_params.get("folder", "").strip("/")
        inside = {n: d for n, d in commit.files.items() if not folder or n.startswith(f"{folder}/")}
        if folder and not inside:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        start = len(folder) + 1 if folder else 0
        deep = request.query_params.get("recursive") in ("true", "True", "1")
        folders = {n[: n.index("/", start)] for n in inside if "/" in n[start:]}
        found = [_entry(name, data) for name, data in inside.items() if deep or "/" not in name[start:]]
        return JSONResponse([*(_folder(name) for name in sorted(folders)), *found])

    async def paths_info(self, request: Request) -> Response:
        commit = self.commit_of(request, self.repository(request, files=True))
        paths = parse_qs((await request.body()).decode()).get("paths", [])
        found = [_entry(path, commit.files[path]) for path in paths if path in commit.files]
        found += [_folder(path) for path in paths if any(name.startswith(f"{path}/") for name in commit.files)]
        return JSONResponse(found)

    async def file(self, request: Request) -> Response:
        commit = self.commit_of(request, self.repository(request, files=True))
        name = request.path_params["file"]
        if name not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        data = commit.files[name]
        etag = hashlib.sha256(data).hexdigest() if is_large(name, len(data)) else blob_id(data)
        return Response(data, headers={"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid})


def _blob(name: str, data: bytes) -> dict[str, Any]:
    if not is_large(name, len(data)):
        return {"size": len(data), "blobId": blob_id(data)}
    large = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": len(pointer(data))}
    return {"size": len(data), "blobId": blob_id(pointer(data)), "lfs": large}


def _entry(name: str, data: bytes) -> dict[str, Any]:
    blob = _blob(name, data)
    large = blob.get("lfs")
    pointed = (
        {"lfs": {"oid": large["sha256"], "size": large["size"], "pointerSize": large["pointerSize"]}} if large else {}
    )
    return {"type": "file", "path": name, "size": blob["size"], "oid": blob["blobId"], **pointed}


def _folder(name: str) -> dict[str, Any]:
    return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
