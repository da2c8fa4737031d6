"""The supervisor's control API: HTTP with JSON over a unix socket.

======== ============================== ================================================================
method   path                           what
======== ============================== ================================================================
GET      /v1/supervisor                 version and pid
GET      /v1/deployments                ``[Status]``
POST     /v1/deployments                bring one up: ``{manifest, source, api_key, environment, recreate}``
GET      /v1/deployments/NAME           ``Status``
GET      /v1/deployments/NAME/watch     a ``Status`` a line, at every change
DELETE   /v1/deployments/NAME           take it down; ``?now=1`` without drain; answers when it is gone
POST     /v1/deployments/NAME/start     want it running, as its manifest said last
POST     /v1/deployments/NAME/stop      stop it, but keep it; ``?now=1``; answers when it is stopped
POST     /v1/deployments/NAME/restart   replace its instance
GET      /v1/watch                      ``[Status]`` a line, at every change of any
GET      /v1/gpus                       ``{inventory, leases}``
POST     /v1/shutdown                   end the supervisor; ``{stop: bool}``
======== ============================== ================================================================

An error answers with its ``payload()`` and the status 400, 404, 409 or 500. The socket is its owner's (0600).
"""
