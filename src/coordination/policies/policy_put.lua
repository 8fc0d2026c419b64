#!lua flags=allow-oom
-- Writes the document of one scope, or takes it away, in one step with the fact and the record of the change.
--
-- KEYS  1 policies  2 broadcast  3 the record of changes: a stream
-- ARGV  1 scope  2 its parts (MessagePack map), or '': the document goes  3 who says so
--       4 the version that this replaces (0: there is no document), or ''  5 documents at the most
--       6 why, or ''  7 changes that the record keeps
-- Returns {state, version}: 1 done, or the same is there already; 0 another version is there; 2 there are as many
--       documents as there may be. Only 1 changed something.
-- Cost  O(1). Passes when memory is full: the documents and the record are bounded, and each change tells one fact.
local scope, parts, by, why = ARGV[1], ARGV[2], ARGV[3], ARGV[6]
local kept = redis.call('HGET', KEYS[1], scope)
local ok, before = pcall(cmsgpack.unpack, kept or '\128')
if not ok or type(before) ~= 'table' then before = {} end
local is = tonumber(before.version) or 0
local said = before.parts or ''
if said == parts then return {1, is} end
if ARGV[4] ~= '' and tonumber(ARGV[4]) ~= is then return {0, is} end
if not kept and redis.call('HLEN', KEYS[1]) > tonumber(ARGV[5]) then return {2, is} end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
-- One number for all documents: it rises with each change, and so does not come back with a document that was away.
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
if parts == '' then
  redis.call('HDEL', KEYS[1], scope)
else
  redis.call('HSET', KEYS[1], scope,
    cmsgpack.pack({parts = parts, version = version, by = by, at = now, reason = why}))
end
local function shown(bytes)
  local fine, map = pcall(cmsgpack.unpack, bytes)
  return bytes ~= '' and fine and map or nil
end
local data = cmsgpack.pack({scope = scope, version = version, by = by, reason = why ~= '' and why or nil,
  before = shown(said), after = shown(parts)})
local time = string.format('%.0f', now)
redis.call('XADD', KEYS[2], '*', 'type', 'policy.changed', 'source', by, 'time', time, 'data', data)
redis.call('XADD', KEYS[3], 'MAXLEN', '=', ARGV[7], '*', 'type', 'policy.changed', 'source', by, 'time', time,
  'data', data)
return {1, version}
