-- What each version's migration made of the schema, on SQLite, when it was first published.
-- version 1
CREATE TABLE schema_versions (version INTEGER PRIMARY KEY, at REAL NOT NULL);
CREATE TABLE settings (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, policy TEXT NOT NULL, instructions TEXT NOT NULL, secret TEXT NOT NULL);
CREATE TABLE items (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL CHECK (kind IN ('item', 'gold', 'qualification')), prompt TEXT NOT NULL, completions TEXT NOT NULL, models TEXT, answer TEXT, priority REAL NOT NULL);
CREATE INDEX items_of_kind ON items (kind, id);
CREATE TABLE labelers (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, name TEXT NOT NULL UNIQUE);
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, item_id BIGINT REFERENCES items, labeler_id BIGINT REFERENCES labelers, session TEXT, submission TEXT UNIQUE, shown TEXT, seconds REAL, data TEXT NOT NULL);
CREATE INDEX events_of_item ON events (item_id);
CREATE INDEX events_of_labeler ON events (labeler_id, kind);
CREATE TABLE work (item_id BIGINT NOT NULL REFERENCES items, labeler_id BIGINT NOT NULL REFERENCES labelers, state TEXT NOT NULL CHECK (state IN ('leased', 'submitted', 'skipped', 'expired')), session TEXT, shown TEXT NOT NULL, seen_at REAL NOT NULL, lease_until REAL NOT NULL, draft TEXT, event_id BIGINT, PRIMARY KEY (item_id, labeler_id));
CREATE INDEX work_of_labeler ON work (labeler_id, state);
CREATE INDEX work_leases ON work (state, lease_until);
CREATE TABLE queue (item_id BIGINT PRIMARY KEY REFERENCES items, kind TEXT NOT NULL, priority REAL NOT NULL, num_held INTEGER NOT NULL);
CREATE INDEX queue_least_labelled ON queue (kind, num_held, priority DESC, item_id);
CREATE INDEX queue_uncertainty ON queue (kind, priority DESC, num_held, item_id);
CREATE TRIGGER settings_no_update BEFORE update ON settings BEGIN SELECT RAISE(ABORT, 'settings is append-only'); END;
CREATE TRIGGER settings_no_delete BEFORE delete ON settings BEGIN SELECT RAISE(ABORT, 'settings is append-only'); END;
CREATE TRIGGER items_no_update BEFORE update ON items BEGIN SELECT RAISE(ABORT, 'items is append-only'); END;
CREATE TRIGGER items_no_delete BEFORE delete ON items BEGIN SELECT RAISE(ABORT, 'items is append-only'); END;
CREATE TRIGGER labelers_no_update BEFORE update ON labelers BEGIN SELECT RAISE(ABORT, 'labelers is append-only'); END;
CREATE TRIGGER labelers_no_delete BEFORE delete ON labelers BEGIN SELECT RAISE(ABORT, 'labelers is append-only'); END;
CREATE TRIGGER events_no_update BEFORE update ON events BEGIN SELECT RAISE(ABORT, 'events is append-only'); END;
CREATE TRIGGER events_no_delete BEFORE delete ON events BEGIN SELECT RAISE(ABORT, 'events is append-only'); END;
-- version 2
CREATE TABLE tokens (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, labeler_id BIGINT NOT NULL REFERENCES labelers, sha256 TEXT NOT NULL UNIQUE);
CREATE INDEX tokens_of_labeler ON tokens (labeler_id, id);
CREATE TRIGGER tokens_no_update BEFORE update ON tokens BEGIN SELECT RAISE(ABORT, 'tokens is append-only'); END;
CREATE TRIGGER tokens_no_delete BEFORE delete ON tokens BEGIN SELECT RAISE(ABORT, 'tokens is append-only'); END;
