"""A call is written once, as a flow; a class of calls is a method of both clients through these descriptors."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from novastack_client._core import Core, Flow

P = ParamSpec("P")
T = TypeVar("T")
_NAMES = ("__module__", "__name__", "__qualname__", "__doc__")


class Runner(ABC):
    """Does what flows ask for."""

    _core: Core


class SyncRunner(Runner):
    @abstractmethod
    def _run(self, flow: Flow[T]) -> T: ...

    @abstractmethod
    def _items(self, flow: Flow[None]) -> Iterator[Any]: ...


class AsyncRunner(Runner):
    @abstractmethod
    async def _run(self, flow: Flow[T]) -> T: ...

    @abstractmethod
    def _items(self, flow: Flow[None]) -> AsyncIterator[Any]: ...


def _signature(flow: Callable[..., Any]) -> inspect.Signature:
    """Without the core."""
    whole = inspect.signature(flow)
    return whole.replace(parameters=list(whole.parameters.values())[1:])


class Endpoint(Generic[P, T]):
    """A flow's result: `client.get_project(…)`, awaited on the asynchronous client."""

    def __init__(self, flow: Callable[Concatenate[Core, P], Flow[T]]) -> None:
        self._flow = flow
        self.__doc__ = flow.__doc__
        self.__signature__ = _signature(flow)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: SyncRunner, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncRunner, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        if client is None:
            return self

        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._run(self._flow(client._core, *args, **kwargs))

        return _named(call, self._flow)


class Listing(Generic[P, T]):
    """A flow's items: `for project in client.list_projects():`, `async for` on the asynchronous client."""

    def __init__(self, kind: type[T], flow: Callable[Concatenate[Core, P], Flow[None]]) -> None:
        self._flow = flow
        self.__doc__ = flow.__doc__
        self.__signature__ = _signature(flow)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: SyncRunner, owner: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, client: AsyncRunner, owner: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        if client is None:
            return self

        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._items(self._flow(client._core, *args, **kwargs))

        return _named(call, self._flow)


def at(path: str, flow: Callable[Concatenate[Core, str, P], Flow[T]]) -> Callable[[Callable[[], None]], Endpoint[P, T]]:
    """Decorator: a call that is `flow` at one path, by the name and docstring of what is decorated."""

    def of(told: Callable[[], None]) -> Endpoint[P, T]:
        def call(core: Core, *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
            return (yield from flow(core, path, *args, **kwargs))

        functools.update_wrapper(call, told, assigned=_NAMES)
        whole = inspect.signature(flow)
        core, _, *others = whole.parameters.values()
        call.__signature__ = whole.replace(parameters=[core, *others])  # type: ignore[attr-defined]
        return Endpoint(call)

    return of


def _named(call: Callable[..., Any], flow: Callable[..., Any]) -> Callable[..., Any]:
    functools.update_wrapper(call, flow, assigned=_NAMES)
    call.__signature__ = _signature(flow)  # type: ignore[attr-defined]
    return call


def listing(
    kind: type[T],
) -> Callable[[Callable[Concatenate[Core, P], Flow[None]]], Listing[P, T]]:
    """Decorator of a flow that yields `kind`s."""
    return lambda flow: Listing(kind, flow)
