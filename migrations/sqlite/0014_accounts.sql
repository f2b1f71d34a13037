-- Accounts beside the one that the settings name. An account without a row is enabled: its keys say that it exists.
CREATE TABLE accounts (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    disabled_at BIGINT
);

-- Parts of object storage that the operator assigned to an account: s3://bucket or s3://bucket/folder. What came from
-- the file of accounts is replaced as a whole when the file changes.
CREATE TABLE account_storage (
    account_id TEXT NOT NULL,
    bucket TEXT NOT NULL,
    folder TEXT NOT NULL,
    source TEXT NOT NULL CHECK (source IN ('Command', 'File')),
    created_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, bucket, folder, source)
);
CREATE INDEX account_storage_bucket ON account_storage (bucket);

-- What processes of one database share and no user holds: the first to write a name decides its value.
CREATE TABLE service_secrets (
    name TEXT PRIMARY KEY,
    secret TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

-- Which keys are the operator's own: made at first start or preset.
ALTER TABLE access_keys ADD COLUMN root BIGINT NOT NULL DEFAULT 0;
UPDATE access_keys SET root = 1
    WHERE note = 'root' AND policy IS NULL AND expires_at IS NULL AND token_digest IS NULL;
INSERT INTO service_secrets (name, secret, created_at)
    SELECT 'root-keys-made', MIN(id), MIN(created_at) FROM access_keys WHERE root = 1 HAVING COUNT(*) > 0;
