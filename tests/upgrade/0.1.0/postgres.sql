CREATE TABLE _sqlx_migrations (
    version bigint NOT NULL,
    description text NOT NULL,
    installed_on timestamp with time zone DEFAULT now() NOT NULL,
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);
CREATE TABLE access_keys (
    id text NOT NULL,
    account_id text NOT NULL,
    kind text NOT NULL,
    secret text,
    digest text,
    note text NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint,
    revoked_at bigint,
    token_digest text,
    policy text,
    CONSTRAINT access_keys_check CHECK (((token_digest IS NULL) OR ((kind = 'SigV4'::text) AND (expires_at IS NOT NULL)))),
    CONSTRAINT access_keys_kind_check CHECK ((kind = ANY (ARRAY['SigV4'::text, 'Bearer'::text]))),
    CONSTRAINT one_proof CHECK ((((kind = 'SigV4'::text) = (secret IS NOT NULL)) AND ((kind = 'Bearer'::text) = (digest IS NOT NULL))))
);
CREATE TABLE custom_models (
    id text NOT NULL,
    account_id text NOT NULL,
    arn text NOT NULL,
    name text NOT NULL,
    job_id text,
    job_arn text,
    job_name text,
    customization_type text NOT NULL,
    base_model_id text NOT NULL,
    base_model_arn text NOT NULL,
    foundation_model_arn text NOT NULL,
    kms_key_arn text,
    hyper_parameters text NOT NULL,
    training_data text,
    validation_data text,
    output_data text,
    customization_config text,
    training_loss double precision,
    validation_losses text,
    artifact_uri text NOT NULL,
    artifact_digests text NOT NULL,
    status text NOT NULL,
    failure_message text,
    creation_time bigint NOT NULL,
    CONSTRAINT custom_models_status_check CHECK ((status = ANY (ARRAY['Creating'::text, 'Active'::text, 'Failed'::text])))
);
CREATE TABLE customization_jobs (
    id text NOT NULL,
    account_id text NOT NULL,
    arn text NOT NULL,
    name text NOT NULL,
    request_token text,
    request_digest text NOT NULL,
    customization_type text NOT NULL,
    base_model_id text NOT NULL,
    base_model_arn text NOT NULL,
    foundation_model_arn text NOT NULL,
    output_model_name text NOT NULL,
    role_arn text NOT NULL,
    kms_key_arn text,
    hyper_parameters text NOT NULL,
    training_data text NOT NULL,
    validation_data text,
    output_data text NOT NULL,
    vpc_config text,
    customization_config text,
    model_tags text NOT NULL,
    seed bigint NOT NULL,
    status text NOT NULL,
    tasks text NOT NULL,
    progress text,
    training_loss double precision,
    validation_losses text,
    failure_message text,
    output_model_arn text,
    creation_time bigint NOT NULL,
    last_modified_time bigint NOT NULL,
    end_time bigint,
    attempt bigint NOT NULL,
    worker text,
    lease_until bigint,
    strikes bigint NOT NULL,
    published_attempt bigint,
    published text,
    scratch bigint NOT NULL,
    CONSTRAINT completed_has_model CHECK (((status = 'Completed'::text) = (output_model_arn IS NOT NULL))),
    CONSTRAINT customization_jobs_status_check CHECK ((status = ANY (ARRAY['InProgress'::text, 'Completed'::text, 'Failed'::text, 'Stopping'::text, 'Stopped'::text]))),
    CONSTRAINT ended_is_not_held CHECK (((end_time IS NULL) OR (lease_until IS NULL))),
    CONSTRAINT ended_or_not CHECK (((status = ANY (ARRAY['Completed'::text, 'Failed'::text, 'Stopped'::text])) = (end_time IS NOT NULL))),
    CONSTRAINT failed_says_why CHECK (((status = 'Failed'::text) = (failure_message IS NOT NULL))),
    CONSTRAINT held_by_someone CHECK (((lease_until IS NULL) = (worker IS NULL)))
);
CREATE TABLE imported_models (
    id text NOT NULL,
    account_id text NOT NULL,
    arn text NOT NULL,
    name text NOT NULL,
    job_arn text NOT NULL,
    job_name text NOT NULL,
    source text NOT NULL,
    kms_key_arn text,
    architecture text NOT NULL,
    instruct_supported boolean NOT NULL,
    artifact_uri text NOT NULL,
    artifact_digests text NOT NULL,
    creation_time bigint NOT NULL
);
CREATE TABLE job_events (
    id bigint NOT NULL,
    account_id text NOT NULL,
    job_id text NOT NULL,
    attempt bigint NOT NULL,
    at bigint NOT NULL,
    kind text NOT NULL,
    detail text NOT NULL
);
ALTER TABLE job_events ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME job_events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE model_deployments (
    id text NOT NULL,
    account_id text NOT NULL,
    arn text NOT NULL,
    name text NOT NULL,
    request_token text,
    request_digest text NOT NULL,
    description text,
    model_arn text NOT NULL,
    status text NOT NULL,
    update_model_arn text,
    update_status text,
    failure_message text,
    creation_time bigint NOT NULL,
    last_updated_time bigint NOT NULL,
    CONSTRAINT model_deployments_status_check CHECK ((status = ANY (ARRAY['Creating'::text, 'Active'::text, 'Failed'::text]))),
    CONSTRAINT model_deployments_update_status_check CHECK ((update_status = ANY (ARRAY['Updating'::text, 'UpdateCompleted'::text, 'UpdateFailed'::text]))),
    CONSTRAINT updated_or_not CHECK (((update_model_arn IS NULL) = (update_status IS NULL)))
);
CREATE TABLE model_imports (
    id text NOT NULL,
    account_id text NOT NULL,
    kind text NOT NULL,
    arn text,
    name text,
    model_id text NOT NULL,
    model_arn text NOT NULL,
    model_name text NOT NULL,
    role_arn text,
    kms_key_arn text,
    source text NOT NULL,
    vpc_config text,
    model_tags text NOT NULL,
    request_token text,
    request_digest text NOT NULL,
    status text NOT NULL,
    failure_message text,
    creation_time bigint NOT NULL,
    last_modified_time bigint NOT NULL,
    end_time bigint,
    attempt bigint NOT NULL,
    worker text,
    lease_until bigint,
    strikes bigint NOT NULL,
    CONSTRAINT ended_is_not_held CHECK (((end_time IS NULL) OR (lease_until IS NULL))),
    CONSTRAINT ended_or_not CHECK (((status = ANY (ARRAY['Completed'::text, 'Failed'::text])) = (end_time IS NOT NULL))),
    CONSTRAINT failed_says_why CHECK (((status = 'Failed'::text) = (failure_message IS NOT NULL))),
    CONSTRAINT held_by_someone CHECK (((lease_until IS NULL) = (worker IS NULL))),
    CONSTRAINT job_has_name CHECK ((((kind = 'ImportedModel'::text) = (arn IS NOT NULL)) AND ((arn IS NULL) = (name IS NULL)))),
    CONSTRAINT model_imports_kind_check CHECK ((kind = ANY (ARRAY['ImportedModel'::text, 'CustomModel'::text]))),
    CONSTRAINT model_imports_status_check CHECK ((status = ANY (ARRAY['InProgress'::text, 'Completed'::text, 'Failed'::text])))
);
CREATE TABLE provisioned_throughputs (
    id text NOT NULL,
    account_id text NOT NULL,
    arn text NOT NULL,
    name text NOT NULL,
    request_token text,
    request_digest text NOT NULL,
    model_units bigint NOT NULL,
    model_arn text NOT NULL,
    foundation_model_arn text NOT NULL,
    status text NOT NULL,
    failure_message text,
    commitment text,
    commitment_expiration_time bigint,
    creation_time bigint NOT NULL,
    last_modified_time bigint NOT NULL,
    CONSTRAINT committed_until CHECK (((commitment IS NULL) = (commitment_expiration_time IS NULL))),
    CONSTRAINT provisioned_throughputs_commitment_check CHECK ((commitment = ANY (ARRAY['OneMonth'::text, 'SixMonths'::text]))),
    CONSTRAINT provisioned_throughputs_model_units_check CHECK ((model_units >= 1)),
    CONSTRAINT provisioned_throughputs_status_check CHECK ((status = ANY (ARRAY['Creating'::text, 'InService'::text, 'Updating'::text, 'Failed'::text])))
);
CREATE TABLE tags (
    account_id text NOT NULL,
    resource_arn text NOT NULL,
    key text NOT NULL,
    value text NOT NULL
);
INSERT INTO _sqlx_migrations VALUES (1, 'first light', '2026-11-30 13:01:12.365801+00', true, '\x0b763a27df96eb7370c784fae2dc7a2b3b695e47790d3e4194befae4d3af6ad923f6df6ae3ccbbc324632b2dcb4972fb', 31817799);
INSERT INTO _sqlx_migrations VALUES (2, 'serving', '2026-11-30 13:01:12.402588+00', true, '\xa09bce38517e1cb92f1d2f9c7f252110fe38f5ddc4af91e444bbed2ad1f3955b211013114c8c1f5aace32c91294aa781', 9881858);
INSERT INTO _sqlx_migrations VALUES (4, 'keys', '2026-11-30 13:01:12.412651+00', true, '\xe83467d8989551727e5749b77cea96ca4576bbee23c1a0e6730ba4596fd1bc8b247804ab0663b895f0bec397d5a203db', 594022);
INSERT INTO _sqlx_migrations VALUES (5, 'imports', '2026-11-30 13:01:12.413367+00', true, '\x0725eb5b3eaee5c2d0151e3a869c9b26c65a82e05b0651c2f329ce5a7ec8fde30a089d8309c1c1d695f62ad3d3db233d', 9397268);
INSERT INTO access_keys VALUES ('AKIAUPGRADETESTS', '000000000000', 'SigV4', 'a-secret-for-upgrade-tests', NULL, 'root', 1796043672423, NULL, NULL, NULL, NULL);
INSERT INTO access_keys VALUES ('bearer-8dd49e7c9cd6', '000000000000', 'Bearer', NULL, '8dd49e7c9cd65e2f8be01eadb874358df764610df3eef03236e8bfe5fffdda80', 'root', 1796043672424, NULL, NULL, NULL, NULL);
INSERT INTO customization_jobs VALUES ('qrbb90qlvpzr', '000000000000', 'arn:aws:bedrock:us-east-1:000000000000:model-customization-job/tunesmith.tiny-v1:0/qrbb90qlvpzr', 'left-running', '6ddefaa0-395e-4963-a0be-6fdae277cd64', '090770bbe5acf7b6b83585d1ab6c07c310df905e5ed606157dc7061f96ec9e60', 'FINE_TUNING', 'tunesmith.tiny-v1:0', 'arn:aws:bedrock:us-east-1::foundation-model/tunesmith.tiny-v1:0', 'arn:aws:bedrock:us-east-1::foundation-model/tunesmith.tiny-v1:0', 'finished-later', 'arn:aws:iam::111111111111:role/tuner', NULL, '{"batchSize":"8","checkpointInterval":"60","earlyStoppingPatience":"50","evaluationInterval":"50","learningRate":"0.01","learningRateWarmupSteps":"20","loraDropout":"0.1","loraRank":"2","seed":"7","stepCount":"300"}', '{"s3Uri":"s3://tuning/train.jsonl"}', '{"validators":[{"s3Uri":"s3://tuning/validation.jsonl"}]}', '{"s3Uri":"s3://tuning/out/"}', NULL, NULL, '[]', 7, 'InProgress', '{"validation":{"status":"InProgress","creationTime":1796043672656,"lastModifiedTime":1796043672656},"dataProcessing":{"status":"NotStarted"},"training":{"status":"NotStarted"}}', '{"phase":"training","step":120,"totalSteps":300,"trainingLoss":3.0710673133532205,"validationLoss":3.659189095099767,"tokensPerSecond":34424.74341271606}', NULL, NULL, NULL, NULL, 1796043672627, 1796043672656, NULL, 1, 'worker-i4ecwh9s7th1', 1796043732644, 0, NULL, NULL, 1);
INSERT INTO job_events OVERRIDING SYSTEM VALUE VALUES (1, '000000000000', 'qrbb90qlvpzr', 0, 1796043672627, 'Created', 'left-running');
INSERT INTO job_events OVERRIDING SYSTEM VALUE VALUES (2, '000000000000', 'qrbb90qlvpzr', 1, 1796043672644, 'Claimed', 'worker-i4ecwh9s7th1');
SELECT pg_catalog.setval('job_events_id_seq', 2, true);
ALTER TABLE ONLY _sqlx_migrations
    ADD CONSTRAINT _sqlx_migrations_pkey PRIMARY KEY (version);
ALTER TABLE ONLY access_keys
    ADD CONSTRAINT access_keys_digest_key UNIQUE (digest);
ALTER TABLE ONLY access_keys
    ADD CONSTRAINT access_keys_pkey PRIMARY KEY (id);
ALTER TABLE ONLY custom_models
    ADD CONSTRAINT custom_models_arn_key UNIQUE (arn);
ALTER TABLE ONLY custom_models
    ADD CONSTRAINT custom_models_pkey PRIMARY KEY (id);
ALTER TABLE ONLY customization_jobs
    ADD CONSTRAINT customization_jobs_arn_key UNIQUE (arn);
ALTER TABLE ONLY customization_jobs
    ADD CONSTRAINT customization_jobs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY imported_models
    ADD CONSTRAINT imported_models_arn_key UNIQUE (arn);
ALTER TABLE ONLY imported_models
    ADD CONSTRAINT imported_models_pkey PRIMARY KEY (id);
ALTER TABLE ONLY job_events
    ADD CONSTRAINT job_events_pkey PRIMARY KEY (id);
ALTER TABLE ONLY model_deployments
    ADD CONSTRAINT model_deployments_arn_key UNIQUE (arn);
ALTER TABLE ONLY model_deployments
    ADD CONSTRAINT model_deployments_pkey PRIMARY KEY (id);
ALTER TABLE ONLY model_imports
    ADD CONSTRAINT model_imports_arn_key UNIQUE (arn);
ALTER TABLE ONLY model_imports
    ADD CONSTRAINT model_imports_pkey PRIMARY KEY (id);
ALTER TABLE ONLY provisioned_throughputs
    ADD CONSTRAINT provisioned_throughputs_arn_key UNIQUE (arn);
ALTER TABLE ONLY provisioned_throughputs
    ADD CONSTRAINT provisioned_throughputs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY tags
    ADD CONSTRAINT tags_pkey PRIMARY KEY (resource_arn, key);
CREATE UNIQUE INDEX custom_models_job ON custom_models USING btree (job_id);
CREATE INDEX custom_models_listing ON custom_models USING btree (account_id, creation_time, id);
CREATE UNIQUE INDEX custom_models_name ON custom_models USING btree (account_id, name);
CREATE INDEX customization_jobs_listing ON customization_jobs USING btree (account_id, creation_time, id);
CREATE UNIQUE INDEX customization_jobs_model_name ON customization_jobs USING btree (account_id, output_model_name) WHERE (status = ANY (ARRAY['InProgress'::text, 'Stopping'::text]));
CREATE UNIQUE INDEX customization_jobs_name ON customization_jobs USING btree (account_id, name);
CREATE INDEX customization_jobs_queue ON customization_jobs USING btree (creation_time, id) WHERE (status = ANY (ARRAY['InProgress'::text, 'Stopping'::text]));
CREATE INDEX customization_jobs_scratch ON customization_jobs USING btree (end_time) WHERE ((scratch = 1) AND (end_time IS NOT NULL));
CREATE UNIQUE INDEX customization_jobs_token ON customization_jobs USING btree (account_id, request_token);
CREATE INDEX imported_models_listing ON imported_models USING btree (account_id, creation_time, id);
CREATE UNIQUE INDEX imported_models_name ON imported_models USING btree (account_id, name);
CREATE UNIQUE INDEX job_events_end ON job_events USING btree (job_id) WHERE (kind = ANY (ARRAY['Completed'::text, 'Failed'::text, 'Stopped'::text]));
CREATE INDEX job_events_job ON job_events USING btree (job_id, id);
CREATE INDEX model_deployments_listing ON model_deployments USING btree (account_id, creation_time, id);
CREATE INDEX model_deployments_model ON model_deployments USING btree (model_arn);
CREATE UNIQUE INDEX model_deployments_name ON model_deployments USING btree (account_id, name);
CREATE UNIQUE INDEX model_deployments_token ON model_deployments USING btree (account_id, request_token);
CREATE INDEX model_imports_listing ON model_imports USING btree (account_id, kind, creation_time, id);
CREATE INDEX model_imports_model ON model_imports USING btree (model_arn);
CREATE UNIQUE INDEX model_imports_model_name ON model_imports USING btree (account_id, model_name) WHERE ((status = 'InProgress'::text) AND (kind = 'ImportedModel'::text));
CREATE UNIQUE INDEX model_imports_name ON model_imports USING btree (account_id, name);
CREATE INDEX model_imports_queue ON model_imports USING btree (creation_time, id) WHERE (status = 'InProgress'::text);
CREATE UNIQUE INDEX model_imports_token ON model_imports USING btree (account_id, kind, request_token);
CREATE INDEX provisioned_throughputs_listing ON provisioned_throughputs USING btree (account_id, creation_time, id);
CREATE INDEX provisioned_throughputs_model ON provisioned_throughputs USING btree (model_arn);
CREATE UNIQUE INDEX provisioned_throughputs_name ON provisioned_throughputs USING btree (account_id, name);
CREATE UNIQUE INDEX provisioned_throughputs_token ON provisioned_throughputs USING btree (account_id, request_token);
ALTER TABLE ONLY custom_models
    ADD CONSTRAINT custom_models_job_id_fkey FOREIGN KEY (job_id) REFERENCES customization_jobs(id);
ALTER TABLE ONLY job_events
    ADD CONSTRAINT job_events_job_id_fkey FOREIGN KEY (job_id) REFERENCES customization_jobs(id);
