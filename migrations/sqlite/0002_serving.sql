-- What custom models are asked through: deployments and provisioned throughput.

CREATE TABLE model_deployments (
    id                 TEXT PRIMARY KEY,
    account_id         TEXT NOT NULL,
    arn                TEXT NOT NULL UNIQUE,
    name               TEXT NOT NULL,
    request_token      TEXT,
    request_digest     TEXT NOT NULL,
    description        TEXT,
    model_arn          TEXT NOT NULL,
    status             TEXT NOT NULL CHECK (status IN ('Creating', 'Active', 'Failed')),
    -- The last update: its model, and how it went.
    update_model_arn   TEXT,
    update_status      TEXT CHECK (update_status IN ('Updating', 'UpdateCompleted', 'UpdateFailed')),
    failure_message    TEXT,
    creation_time      BIGINT NOT NULL,
    last_updated_time  BIGINT NOT NULL,
    CONSTRAINT updated_or_not CHECK ((update_model_arn IS NULL) = (update_status IS NULL))
);
CREATE UNIQUE INDEX model_deployments_name ON model_deployments (account_id, name);
CREATE UNIQUE INDEX model_deployments_token ON model_deployments (account_id, request_token);
CREATE INDEX model_deployments_listing ON model_deployments (account_id, creation_time, id);
CREATE INDEX model_deployments_model ON model_deployments (model_arn);

CREATE TABLE provisioned_throughputs (
    id                          TEXT PRIMARY KEY,
    account_id                  TEXT NOT NULL,
    arn                         TEXT NOT NULL UNIQUE,
    name                        TEXT NOT NULL,
    request_token               TEXT,
    request_digest              TEXT NOT NULL,
    model_units                 BIGINT NOT NULL CHECK (model_units >= 1),
    model_arn                   TEXT NOT NULL,
    foundation_model_arn        TEXT NOT NULL,
    status                      TEXT NOT NULL CHECK (status IN ('Creating', 'InService', 'Updating', 'Failed')),
    failure_message             TEXT,
    commitment                  TEXT CHECK (commitment IN ('OneMonth', 'SixMonths')),
    commitment_expiration_time  BIGINT,
    creation_time               BIGINT NOT NULL,
    last_modified_time          BIGINT NOT NULL,
    CONSTRAINT committed_until CHECK ((commitment IS NULL) = (commitment_expiration_time IS NULL))
);
CREATE UNIQUE INDEX provisioned_throughputs_name ON provisioned_throughputs (account_id, name);
CREATE UNIQUE INDEX provisioned_throughputs_token ON provisioned_throughputs (account_id, request_token);
CREATE INDEX provisioned_throughputs_listing ON provisioned_throughputs (account_id, creation_time, id);
CREATE INDEX provisioned_throughputs_model ON provisioned_throughputs (model_arn);
