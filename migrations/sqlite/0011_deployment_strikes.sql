-- How often loading a deployment's model began and came to no end, who is at it until when, and since when its
-- dependencies are away.

ALTER TABLE model_deployments ADD COLUMN strikes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE model_deployments ADD COLUMN loading_until BIGINT;
ALTER TABLE model_deployments ADD COLUMN failing_since BIGINT;
