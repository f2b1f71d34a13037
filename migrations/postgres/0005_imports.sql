-- Models made elsewhere: what was asked to be brought in, and what came of it.

-- One row per request: a model import job, or a CreateCustomModel. Both are worked on from here.
CREATE TABLE model_imports (
    id                  TEXT PRIMARY KEY,
    account_id          TEXT NOT NULL,
    kind                TEXT NOT NULL CHECK (kind IN ('ImportedModel', 'CustomModel')),
    -- The job's own ARN and name; a CreateCustomModel has neither.
    arn                 TEXT UNIQUE,
    name                TEXT,
    model_id            TEXT NOT NULL,
    model_arn           TEXT NOT NULL,
    model_name          TEXT NOT NULL,
    role_arn            TEXT,
    kms_key_arn         TEXT,
    source              TEXT NOT NULL,
    vpc_config          TEXT,
    model_tags          TEXT NOT NULL,
    request_token       TEXT,
    request_digest      TEXT NOT NULL,

    status              TEXT NOT NULL CHECK (status IN ('InProgress', 'Completed', 'Failed')),
    failure_message     TEXT,
    creation_time       BIGINT NOT NULL,
    last_modified_time  BIGINT NOT NULL,
    end_time            BIGINT,

    -- Who works on it, until when; and how often somebody began without coming to an end.
    attempt             BIGINT NOT NULL,
    worker              TEXT,
    lease_until         BIGINT,
    strikes             BIGINT NOT NULL,

    CONSTRAINT job_has_name CHECK ((kind = 'ImportedModel') = (arn IS NOT NULL) AND (arn IS NULL) = (name IS NULL)),
    CONSTRAINT ended_or_not CHECK ((status IN ('Completed', 'Failed')) = (end_time IS NOT NULL)),
    CONSTRAINT failed_says_why CHECK ((status = 'Failed') = (failure_message IS NOT NULL)),
    CONSTRAINT ended_is_not_held CHECK (end_time IS NULL OR lease_until IS NULL),
    CONSTRAINT held_by_someone CHECK ((lease_until IS NULL) = (worker IS NULL))
);
CREATE UNIQUE INDEX model_imports_name ON model_imports (account_id, name);
CREATE UNIQUE INDEX model_imports_token ON model_imports (account_id, kind, request_token);
-- Two running jobs cannot be promised the same model name.
CREATE UNIQUE INDEX model_imports_model_name ON model_imports (account_id, model_name)
    WHERE status = 'InProgress' AND kind = 'ImportedModel';
CREATE INDEX model_imports_listing ON model_imports (account_id, kind, creation_time, id);
CREATE INDEX model_imports_queue ON model_imports (creation_time, id) WHERE status = 'InProgress';
CREATE INDEX model_imports_model ON model_imports (model_arn);

CREATE TABLE imported_models (
    id                  TEXT PRIMARY KEY,
    account_id          TEXT NOT NULL,
    arn                 TEXT NOT NULL UNIQUE,
    name                TEXT NOT NULL,
    job_arn             TEXT NOT NULL,
    job_name            TEXT NOT NULL,
    source              TEXT NOT NULL,
    kms_key_arn         TEXT,
    architecture        TEXT NOT NULL,
    instruct_supported  BOOLEAN NOT NULL,
    -- Where its files lie, and the SHA-256 of each: what does not match is not served.
    artifact_uri        TEXT NOT NULL,
    artifact_digests    TEXT NOT NULL,
    creation_time       BIGINT NOT NULL
);
CREATE UNIQUE INDEX imported_models_name ON imported_models (account_id, name);
CREATE INDEX imported_models_listing ON imported_models (account_id, creation_time, id);
