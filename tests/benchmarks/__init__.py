"""How fast this runtime is, beside the runtimes that people know.

``python -m tests.benchmarks`` measures everything, which takes some 17 minutes, and writes ``docs/benchmarks.md``.
With ``--only``, ``--concurrency``, ``--candidates`` or ``--quick`` it measures a part and only prints it. ``--root``
takes our side from another checkout, and given twice it sets two checkouts against each other::

    python -m tests.benchmarks --only unary-async --concurrency 32 --rounds 3 --seconds 2
    python -m tests.benchmarks --only stream-async --candidates isolated --root . --root ../before

It needs Linux, ``wrk``, Node.js with npm, and for the first time a way to the package registries.

How to read the numbers:

- All servers of a load are up at once, and driven in turn (A B C A B C), each once the one before has come to rest.
  What is reported is the median of the rounds. Absolute figures are those of the machine and its hour: compare what
  stands in one table, by ratio.
- The server has one core to itself, and the load generator another, where there are two. The tracing backend is a small
  process that takes the spans and answers 200; with three cores it has one of its own, else it shares the load
  generator's.
- The loads are closed loops: a connection sends its next invocation once it has the last one's answer. So latencies are
  those of a server that is driven as hard as it goes, not of one that has room.
- Each candidate's answer is checked before it is measured. Answers that were not 2xx, streams that were cut or short,
  and connections that broke are counted during the rounds, and stand in the table as failures.
- "spans/invocation" is what reached the tracing backend: a runtime that drops spans shows it there.
- "load CPU" is how busy the load generator was. Near 100 % the figure is its own limit, and the server may be faster.

The parts: ``candidates`` (who is measured), ``environments`` (where they are installed), ``servers`` (how they are
run), ``loads`` (how they are driven: by ``wrk`` with ``load.lua``, or by ``client``), ``invocation`` (what is sent, and
what has to come back), ``sink`` (the tracing backend), ``runner`` (in which order), ``results`` and ``report`` (what
comes out of it), ``machine`` (what it was made with), ``agents`` (the sources that are served).
"""
