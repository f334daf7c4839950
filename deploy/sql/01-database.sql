-- Creates what has to be there before the first `migrate`: three roles, the database, and our schema in it.
--
--     psql -v database=shop -f deploy/sql/01-database.sql "$ADMIN_URL"
--
-- ADMIN_URL names any database of the server, as a superuser or as a role with CREATEDB and CREATEROLE.
-- Runs as often as you like. It sets no passwords: use `\password shop_app` in psql, or certificates.
--
-- Variables, each of which may be left out:
--     database   the application's database; shop
--     schema     Changeover's own schema; changeover
--     owner      owns everything, logs in nowhere; <database>_owner
--     deployer   the pipeline logs in as this: migrates, replays, activates; <database>_deploy
--     app        the instances log in as this: append, publish, read; they create and drop nothing; <database>_app

\set ON_ERROR_STOP on
SET client_min_messages = warning;
\if :{?database}
\else
    \set database shop
\endif
\if :{?schema}
\else
    \set schema changeover
\endif
\if :{?owner}
\else
    \set owner :database _owner
\endif
\if :{?deployer}
\else
    \set deployer :database _deploy
\endif
\if :{?app}
\else
    \set app :database _app
\endif

-- Roles ---------------------------------------------------------------------------------------------------------------

SELECT format('CREATE ROLE %I %s', wanted.name, wanted.kind)
FROM (VALUES (:'owner', 'NOLOGIN'), (:'deployer', 'LOGIN'), (:'app', 'LOGIN')) AS wanted (name, kind)
WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = wanted.name)
\gexec

-- Only a member may create something for another role; a superuser needs no membership.
SELECT format('GRANT %I TO %I', :'owner', current_user)
WHERE NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user)
\gexec

GRANT :"owner" TO :"deployer";
-- An activation has to see how long an instance's transactions have been open, which the server shows to members only.
GRANT :"app" TO :"owner";

-- Database ------------------------------------------------------------------------------------------------------------

SELECT format('CREATE DATABASE %I OWNER %I ENCODING %L TEMPLATE template0', :'database', :'owner', 'UTF8')
WHERE NOT EXISTS (SELECT FROM pg_database d WHERE d.datname = :'database')
\gexec

REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO :"deployer", :"app";
-- Whatever the pipeline creates belongs to the owner, not to the login that happened to create it.
ALTER ROLE :"deployer" IN DATABASE :"database" SET role = :'owner';

\connect :"database"
SET client_min_messages = warning;

-- Schema --------------------------------------------------------------------------------------------------------------

CREATE SCHEMA IF NOT EXISTS :"schema" AUTHORIZATION :"owner";
GRANT USAGE ON SCHEMA :"schema" TO :"app";

-- What the owner will create: the tables of our schema by `migrate`; a schema for each major version of a projector by
-- `replay` and `activate-configuration`; and one of the projector's name, with its stable views, by `activate-configuration`,
-- `adopt`, `deactivate` and `repoint-views`. That takes CREATE on the database, which its owner has, and nobody else here.
--
-- Readers outside the application are given the stable views, once:
--     GRANT USAGE ON SCHEMA orders TO reporting; GRANT SELECT ON ALL TABLES IN SCHEMA orders TO reporting;
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" GRANT USAGE ON SCHEMAS TO :"app";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"app";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" GRANT USAGE, SELECT, UPDATE ON SEQUENCES TO :"app";
