"""The supervisor's control API: HTTP with JSON over a unix socket.

======== ============================== ============================================================
method   path                           what
======== ============================== ============================================================
GET      /v1/supervisor                 version and pid
GET      /v1/deployments                ``[Status]``
POST     /v1/deployments                bring one up: ``{manifest, source, api_key, environment}``
GET      /v1/deployments/NAME           ``Status``
GET      /v1/deployments/NAME/watch     a ``Status`` a line, at every change
DELETE   /v1/deployments/NAME           take it down; ``?now=1`` without drain; answers when it is gone
GET      /v1/gpus                       ``{inventory, leases}``
POST     /v1/shutdown                   end the supervisor; ``{stop: bool}``
======== ============================== ============================================================

An error answers with its ``payload()`` and the status 400, 404, 409 or 500. The socket is its owner's (0600).
"""
