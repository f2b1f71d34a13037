-- A temporary pair comes with a session token, of which only the SHA-256 is kept; it always has an end.
ALTER TABLE access_keys ADD COLUMN token_digest TEXT
    CHECK (token_digest IS NULL OR (kind = 'SigV4' AND expires_at IS NOT NULL));
-- What the key may do, as JSON; NULL is everything.
ALTER TABLE access_keys ADD COLUMN policy TEXT;
