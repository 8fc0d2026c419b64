#!lua flags=allow-oom
-- Puts back what was said of one domain, where the server lost it in a failover: only over an older version.
--
-- KEYS  1 domains
-- ARGV  1 domain  2 its version  3 what is said: a MessagePack map
-- Returns 1 if it was put back, else 0: as new a version is there.
-- Cost  O(1). Passes when memory is full: a domain has one field.
local kept = redis.call('HGET', KEYS[1], ARGV[1])
local ok, is = pcall(cmsgpack.unpack, kept or '\128')
local version = ok and type(is) == 'table' and tonumber(is.version) or 0
if version >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
