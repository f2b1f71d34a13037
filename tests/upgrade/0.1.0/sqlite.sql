BEGIN TRANSACTION;
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
);
INSERT INTO "_sqlx_migrations" VALUES(1,'first light','2026-11-30 13:01:11',1,X'56E8323314D623A05FE778CF6A59AA98617BFE1674E44D91DAA9F764E8CC164C4778A497A44E612F4969F6C86E49FC89',7617895);
INSERT INTO "_sqlx_migrations" VALUES(2,'serving','2026-11-30 13:01:11',1,X'A09BCE38517E1CB92F1D2F9C7F252110FE38F5DDC4AF91E444BBED2AD1F3955B211013114C8C1F5AACE32C91294AA781',3925851);
INSERT INTO "_sqlx_migrations" VALUES(4,'keys','2026-11-30 13:01:11',1,X'E83467D8989551727E5749B77CEA96CA4576BBEE23C1A0E6730BA4596FD1BC8B247804AB0663B895F0BEC397D5A203DB',2894630);
INSERT INTO "_sqlx_migrations" VALUES(5,'imports','2026-11-30 13:01:11',1,X'0725EB5B3EAEE5C2D0151E3A869C9B26C65A82E05B0651C2F329CE5A7EC8FDE30A089D8309C1C1D695F62AD3D3DB233D',1606657);
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
    revoked_at  BIGINT, token_digest TEXT
    CHECK (token_digest IS NULL OR (kind = 'SigV4' AND expires_at IS NOT NULL)), policy TEXT,
    CONSTRAINT one_proof CHECK ((kind = 'SigV4') = (secret IS NOT NULL) AND (kind = 'Bearer') = (digest IS NOT NULL))
);
INSERT INTO "access_keys" VALUES('AKIAUPGRADETESTS','000000000000','SigV4','a-secret-for-upgrade-tests',NULL,'root',1796043671031,NULL,NULL,NULL,NULL);
INSERT INTO "access_keys" VALUES('bearer-e8fbeee65172','000000000000','Bearer',NULL,'e8fbeee65172440b960f85ac4fc6bfe80141420c425105b758c2781727e3077d','root',1796043671037,NULL,NULL,NULL,NULL);
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
    training_loss         REAL,
    validation_losses     TEXT,
    -- Where the artifact lies, and the SHA-256 of each of its files: what does not match is not served.
    artifact_uri          TEXT NOT NULL,
    artifact_digests      TEXT NOT NULL,
    status                TEXT NOT NULL CHECK (status IN ('Creating', 'Active', 'Failed')),
    failure_message       TEXT,
    creation_time         BIGINT NOT NULL
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
    training_loss         REAL,
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
INSERT INTO "customization_jobs" VALUES('susu8wvuzg9h','000000000000','arn:aws:bedrock:us-east-1:000000000000:model-customization-job/tunesmith.tiny-v1:0/susu8wvuzg9h','left-running','2dc70c46-e2c9-4745-b555-43c7614325fd','090770bbe5acf7b6b83585d1ab6c07c310df905e5ed606157dc7061f96ec9e60','FINE_TUNING','tunesmith.tiny-v1:0','arn:aws:bedrock:us-east-1::foundation-model/tunesmith.tiny-v1:0','arn:aws:bedrock:us-east-1::foundation-model/tunesmith.tiny-v1:0','finished-later','arn:aws:iam::111111111111:role/tuner',NULL,'{"batchSize":"8","checkpointInterval":"60","earlyStoppingPatience":"50","evaluationInterval":"50","learningRate":"0.01","learningRateWarmupSteps":"20","loraDropout":"0.1","loraRank":"2","seed":"7","stepCount":"300"}','{"s3Uri":"s3://tuning/train.jsonl"}','{"validators":[{"s3Uri":"s3://tuning/validation.jsonl"}]}','{"s3Uri":"s3://tuning/out/"}',NULL,NULL,'[]',7,'InProgress','{"validation":{"status":"InProgress","creationTime":1796043671690,"lastModifiedTime":1796043671690},"dataProcessing":{"status":"NotStarted"},"training":{"status":"NotStarted"}}','{"phase":"training","step":120,"totalSteps":300,"trainingLoss":3.0710673133532205,"validationLoss":3.659189095099767,"tokensPerSecond":29507.9064796084}',NULL,NULL,NULL,NULL,1796043671663,1796043671690,NULL,1,'worker-icrr89sreapv',1796043731680,0,NULL,NULL,1);
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
CREATE TABLE job_events (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id  TEXT NOT NULL,
    job_id      TEXT NOT NULL REFERENCES customization_jobs (id),
    attempt     BIGINT NOT NULL,
    at          BIGINT NOT NULL,
    kind        TEXT NOT NULL,
    detail      TEXT NOT NULL
);
INSERT INTO "job_events" VALUES(1,'000000000000','susu8wvuzg9h',0,1796043671663,'Created','left-running');
INSERT INTO "job_events" VALUES(2,'000000000000','susu8wvuzg9h',1,1796043671680,'Claimed','worker-icrr89sreapv');
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
CREATE TABLE tags (
    account_id    TEXT NOT NULL,
    resource_arn  TEXT NOT NULL,
    key           TEXT NOT NULL,
    value         TEXT NOT NULL,
    PRIMARY KEY (resource_arn, key)
);
CREATE UNIQUE INDEX customization_jobs_name ON customization_jobs (account_id, name);
CREATE UNIQUE INDEX customization_jobs_token ON customization_jobs (account_id, request_token);
CREATE UNIQUE INDEX customization_jobs_model_name ON customization_jobs (account_id, output_model_name)
    WHERE status IN ('InProgress', 'Stopping');
CREATE INDEX customization_jobs_listing ON customization_jobs (account_id, creation_time, id);
CREATE INDEX customization_jobs_queue ON customization_jobs (creation_time, id)
    WHERE status IN ('InProgress', 'Stopping');
CREATE INDEX customization_jobs_scratch ON customization_jobs (end_time) WHERE scratch = 1 AND end_time IS NOT NULL;
CREATE INDEX job_events_job ON job_events (job_id, id);
CREATE UNIQUE INDEX job_events_end ON job_events (job_id) WHERE kind IN ('Completed', 'Failed', 'Stopped');
CREATE UNIQUE INDEX custom_models_name ON custom_models (account_id, name);
CREATE UNIQUE INDEX custom_models_job ON custom_models (job_id);
CREATE INDEX custom_models_listing ON custom_models (account_id, creation_time, id);
CREATE UNIQUE INDEX model_deployments_name ON model_deployments (account_id, name);
CREATE UNIQUE INDEX model_deployments_token ON model_deployments (account_id, request_token);
CREATE INDEX model_deployments_listing ON model_deployments (account_id, creation_time, id);
CREATE INDEX model_deployments_model ON model_deployments (model_arn);
CREATE UNIQUE INDEX provisioned_throughputs_name ON provisioned_throughputs (account_id, name);
CREATE UNIQUE INDEX provisioned_throughputs_token ON provisioned_throughputs (account_id, request_token);
CREATE INDEX provisioned_throughputs_listing ON provisioned_throughputs (account_id, creation_time, id);
CREATE INDEX provisioned_throughputs_model ON provisioned_throughputs (model_arn);
CREATE UNIQUE INDEX model_imports_name ON model_imports (account_id, name);
CREATE UNIQUE INDEX model_imports_token ON model_imports (account_id, kind, request_token);
CREATE UNIQUE INDEX model_imports_model_name ON model_imports (account_id, model_name)
    WHERE status = 'InProgress' AND kind = 'ImportedModel';
CREATE INDEX model_imports_listing ON model_imports (account_id, kind, creation_time, id);
CREATE INDEX model_imports_queue ON model_imports (creation_time, id) WHERE status = 'InProgress';
CREATE INDEX model_imports_model ON model_imports (model_arn);
CREATE UNIQUE INDEX imported_models_name ON imported_models (account_id, name);
CREATE INDEX imported_models_listing ON imported_models (account_id, creation_time, id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('job_events',2);
COMMIT;
