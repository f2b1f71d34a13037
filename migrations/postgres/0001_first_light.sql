-- Ids are TEXT, times are BIGINT milliseconds since 1970, JSON is TEXT; nothing calls now().

CREATE TABLE access_keys (
    id          TEXT PRIMARY KEY,
    account_id  TEXT NOT NULL,
    kind        TEXT NOT NULL CHECK (kind IN ('SigV4', 'Bearer')),
    -- SigV4 recomputes the signature, so its secret must be readable; of a bearer key only the digest is kept.
    secret      TEXT,
    digest      TEXT UNIQUE,
    note        TEXT NOT NULL,
    created_at  BIGINT NOT NULL,
    expires_at  BIGINT,
    revoked_at  BIGINT,
    CONSTRAINT one_proof CHECK ((kind = 'SigV4') = (secret IS NOT NULL) AND (kind = 'Bearer') = (digest IS NOT NULL))
);

CREATE TABLE customization_jobs (
    id                    TEXT PRIMARY KEY,
    account_id            TEXT NOT NULL,
    arn                   TEXT NOT NULL UNIQUE,
    name                  TEXT NOT NULL,
    request_token         TEXT,
    request_digest        TEXT NOT NULL,

    customization_type    TEXT NOT NULL,
    base_model_id         TEXT NOT NULL,
    base_model_arn        TEXT NOT NULL,
    foundation_model_arn  TEXT NOT NULL,
    output_model_name     TEXT NOT NULL,
    role_arn              TEXT NOT NULL,
    kms_key_arn           TEXT,
    hyper_parameters      TEXT NOT NULL,
    training_data         TEXT NOT NULL,
    validation_data       TEXT,
    output_data           TEXT NOT NULL,
    vpc_config            TEXT,
    customization_config  TEXT,
    model_tags            TEXT NOT NULL,
    seed                  BIGINT NOT NULL,

    status                TEXT NOT NULL CHECK (status IN ('InProgress', 'Completed', 'Failed', 'Stopping', 'Stopped')),
    tasks                 TEXT NOT NULL,
    progress              TEXT,
    training_loss         DOUBLE PRECISION,
    validation_losses     TEXT,
    failure_message       TEXT,
    output_model_arn      TEXT,
    creation_time         BIGINT NOT NULL,
    last_modified_time    BIGINT NOT NULL,
    end_time              BIGINT,

    -- The queue: who holds the job, until when, and which attempt may still write.
    attempt               BIGINT NOT NULL,
    worker                TEXT,
    lease_until           BIGINT,
    strikes               BIGINT NOT NULL,
    -- The attempt whose uploaded outputs are the result; set once, before anything is written to the final keys.
    published_attempt     BIGINT,
    published             TEXT,
    -- 1 while objects of attempts may lie in S3 that nobody needs any more once the job has ended.
    scratch               BIGINT NOT NULL,

    CONSTRAINT ended_or_not CHECK ((status IN ('Completed', 'Failed', 'Stopped')) = (end_time IS NOT NULL)),
    CONSTRAINT completed_has_model CHECK ((status = 'Completed') = (output_model_arn IS NOT NULL)),
    CONSTRAINT failed_says_why CHECK ((status = 'Failed') = (failure_message IS NOT NULL)),
    CONSTRAINT ended_is_not_held CHECK (end_time IS NULL OR lease_until IS NULL),
    CONSTRAINT held_by_someone CHECK ((lease_until IS NULL) = (worker IS NULL))
);

-- A name identifies its job for good; a token its request.
CREATE UNIQUE INDEX customization_jobs_name ON customization_jobs (account_id, name);
CREATE UNIQUE INDEX customization_jobs_token ON customization_jobs (account_id, request_token);
-- Two running jobs cannot be promised the same model name.
CREATE UNIQUE INDEX customization_jobs_model_name ON customization_jobs (account_id, output_model_name)
    WHERE status IN ('InProgress', 'Stopping');
CREATE INDEX customization_jobs_listing ON customization_jobs (account_id, creation_time, id);
CREATE INDEX customization_jobs_queue ON customization_jobs (creation_time, id)
    WHERE status IN ('InProgress', 'Stopping');
CREATE INDEX customization_jobs_scratch ON customization_jobs (end_time) WHERE scratch = 1 AND end_time IS NOT NULL;

CREATE TABLE job_events (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id  TEXT NOT NULL,
    job_id      TEXT NOT NULL REFERENCES customization_jobs (id),
    attempt     BIGINT NOT NULL,
    at          BIGINT NOT NULL,
    kind        TEXT NOT NULL,
    detail      TEXT NOT NULL
);
CREATE INDEX job_events_job ON job_events (job_id, id);
-- A job ends once.
CREATE UNIQUE INDEX job_events_end ON job_events (job_id) WHERE kind IN ('Completed', 'Failed', 'Stopped');

CREATE TABLE custom_models (
    id                    TEXT PRIMARY KEY,
    account_id            TEXT NOT NULL,
    arn                   TEXT NOT NULL UNIQUE,
    name                  TEXT NOT NULL,
    job_id                TEXT REFERENCES customization_jobs (id),
    job_arn               TEXT,
    job_name              TEXT,
    customization_type    TEXT NOT NULL,
    base_model_id         TEXT NOT NULL,
    base_model_arn        TEXT NOT NULL,
    foundation_model_arn  TEXT NOT NULL,
    kms_key_arn           TEXT,
    hyper_parameters      TEXT NOT NULL,
    training_data         TEXT,
    validation_data       TEXT,
    output_data           TEXT,
    customization_config  TEXT,
    training_loss         DOUBLE PRECISION,
    validation_losses     TEXT,
    -- Where the artifact lies, and the SHA-256 of each of its files: what does not match is not served.
    artifact_uri          TEXT NOT NULL,
    artifact_digests      TEXT NOT NULL,
    status                TEXT NOT NULL CHECK (status IN ('Creating', 'Active', 'Failed')),
    failure_message       TEXT,
    creation_time         BIGINT NOT NULL
);
CREATE UNIQUE INDEX custom_models_name ON custom_models (account_id, name);
CREATE UNIQUE INDEX custom_models_job ON custom_models (job_id);
CREATE INDEX custom_models_listing ON custom_models (account_id, creation_time, id);

CREATE TABLE tags (
    account_id    TEXT NOT NULL,
    resource_arn  TEXT NOT NULL,
    key           TEXT NOT NULL,
    value         TEXT NOT NULL,
    PRIMARY KEY (resource_arn, key)
);
