"""The gateway: one OpenAI-compatible door for all replicas of one InferenceDeployment.

    main                       the process: configuration, signals, standard streams
    gateway                    the parts put together, on two ports (`listener`)
    admin │ app                the operator's routes │ the clients' routes, both behind `auth`
    proxy                      accepts, counts what is open, drains
    exchange                   one request: wait, choose, pass on, retry while nothing has reached the client
    incoming │ reply │ metrics what came │ what goes │ what is counted
    replicas │ holding         who serves, with their load │ who waits
    routing                    PURE: the choice of a replica
    config                     what is in force, replaced as a whole while it runs
    classes │ meter │ errors   SLO classes and aliases │ reading a stream │ answers that are none

It holds no state that outlives it: a restarted gateway learns its replicas from the operator's next `PUT` and rebuilds
its idea of their prefix caches from traffic.
"""
