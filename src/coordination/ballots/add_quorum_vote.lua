#!lua
-- Counts one vote. The first vote opens the ballot and fixes its electorate, the one that reaches
-- quorum or makes it impossible ends it, each in one step with its fact. The same vote again changes
-- nothing.
--
-- KEYS  1 ballot (hash)  2 electorate (sorted set)  3 votes (hash: instance, value)  4 tally (hash:
--       value, votes for it)  5 ballots by opening time  6 active  7 broadcast  8 open ballots by expiry
--       9 `electorate decision` of the ballots that are kept, by until when  10 electors of all those
--       11 the version of the state  12 the role set of ARGV[4], if that is not ''
-- ARGV  1 decision  2 instance id  3 value: canonical MessagePack  4 role, or ''  5 how long the
--       ballot is open, in ms  6 how long it is kept after its end, in ms  7 the longest that any
--       ballot is kept, in ms  8 the largest electorate  9 how many ballots are listed  10 how many may
--       be open  11 how many electors those that are kept may have together
-- Returns {answer, voted, status, votes counted, quorum, electorate, decided value, role}. answer:
--       'state'; or, nothing being changed, 'absent' (no ballot, and the instance may not open one),
--       'crowd' (no ballot, and the electorate would be too large), 'many' (no ballot, and too many are
--       open), 'much' (no ballot, and those that are kept have too many electors), 'stranger' (not in the
--       electorate), 'role' (another role than the ballot's), 'value' (it voted for another value).
-- Cost  O(log n) for n active instances; the opening vote O(n log n), or O(m log m) for the m that
--       hold the role; the vote that ends it O(votes), if they fit into the fact. Refused when memory is
--       full.
--
-- Each ballot has its own copy of the electorate, and is kept long after its end. So that made-up
-- decisions do not fill the memory, those copies are bounded together.
--
-- The fact says who voted what as long as that fits into 32 KiB; the ballot itself knows it while it
-- is kept.
--
-- A vote is one field of a hash, so it cannot count twice; the electorate is only written where
-- there is no ballot. What was decided is never written again: only an open ballot gets that far.
local ballot, electorate, votes, tally, index, active, broadcast, open, all_kept, electors, state, role_set =
  unpack(KEYS, 1, 12)
local decision, id, value, role = unpack(ARGV, 1, 4)
local lasts, kept, longest = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local told_at_most = 32 * 1024
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function whole(number)
  return string.format('%.0f', number)
end
-- The head of a MessagePack map of this many pairs, at most 65,535.
local function map_of(n)
  if n < 16 then return string.char(0x80 + n) end
  return string.char(0xde, math.floor(n / 256), n % 256)
end
local function keep_until(time)
  for _, key in ipairs({ballot, electorate, votes, tally}) do
    redis.call('PEXPIREAT', key, whole(time))
  end
end

if redis.call('EXISTS', ballot) == 0 then
  local may = tonumber(redis.call('ZSCORE', active, id) or 0) > now
    and (not role_set or redis.call('SISMEMBER', role_set, id) == 1)
  if not may then return {'absent', 0, '', 0, 0, 0, false, ''} end
  local asked = role_set and redis.call('SCARD', role_set) or redis.call('ZCARD', active)
  if asked > tonumber(ARGV[8]) then return {'crowd', 0, '', 0, 0, asked, false, ''} end
  redis.call('ZREMRANGEBYSCORE', open, '-inf', whole(now))
  if redis.call('ZCARD', open) >= tonumber(ARGV[10]) then return {'many', 0, '', 0, 0, 0, false, ''} end
  local lapsed = redis.call('ZRANGEBYSCORE', all_kept, '-inf', whole(now), 'LIMIT', 0, 100)
  if #lapsed > 0 then
    local sum = 0
    for _, one in ipairs(lapsed) do sum = sum + string.match(one, '^%d+') end
    redis.call('ZREM', all_kept, unpack(lapsed))
    redis.call('INCRBY', electors, -sum)
  end
  if tonumber(redis.call('GET', electors) or 0) + asked > tonumber(ARGV[11]) then
    return {'much', 0, '', 0, 0, 0, false, ''}
  end
  -- All first, then without the expired: ZRANGESTORE, which grows its result, takes four times as long.
  if role_set then
    redis.call('ZINTERSTORE', electorate, 2, active, role_set, 'WEIGHTS', 1, 0)
  else
    redis.call('ZINTERSTORE', electorate, 1, active)
  end
  redis.call('ZREMRANGEBYSCORE', electorate, '-inf', whole(now))
  local members = redis.call('ZCARD', electorate)
  -- Left over, if somebody deleted the ballot by hand.
  redis.call('UNLINK', votes, tally)
  redis.call('HSET', ballot, 'decision', decision, 'status', 'open', 'role', role,
    'electorate', members, 'quorum', math.floor(members / 2) + 1, 'vote_count', 0, 'leading', 0, 'said', 0,
    'opened_at', whole(now), 'expires_at', whole(now + lasts), 'kept_until', whole(now + lasts + kept))
  redis.call('ZADD', index, whole(now), decision)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', whole(now - longest))
  redis.call('ZREMRANGEBYRANK', index, 0, -1 - ARGV[9])
  redis.call('ZADD', open, whole(now + lasts), decision)
  redis.call('ZADD', all_kept, whole(now + lasts + kept), members .. ' ' .. decision)
  redis.call('INCRBY', electors, members)
  for _, key in ipairs({index, open, all_kept, electors}) do
    redis.call('PEXPIRE', key, whole(longest))
  end
end

local is = redis.call('HMGET', ballot, 'status', 'role', 'electorate', 'quorum', 'leading',
  'expires_at', 'kept_until', 'value')
local status, members, quorum, leading = is[1], tonumber(is[3]), tonumber(is[4]), tonumber(is[5])
local count = redis.call('HLEN', votes)
local function answer(what, voted)
  return {what, voted, status, count, quorum, members, is[8], is[2]}
end

if not redis.call('ZSCORE', electorate, id) then return answer('stranger', 0) end
if role ~= '' and role ~= is[2] then return answer('role', 0) end
local said = redis.call('HGET', votes, id)
if said and said ~= value then return answer('value', 0) end
if status == 'open' and tonumber(is[6]) <= now then
  -- Kept, so that a clock that goes back does not open it again.
  status = 'expired'
  redis.call('HSET', ballot, 'status', status, 'ended_at', is[6])
end
if said then return answer('state', 1) end
if status ~= 'open' then return answer('state', 0) end

raise_version(state, clock[1] * 1000000 + clock[2])
redis.call('HSET', votes, id, value)
count = count + 1
local support = tonumber(redis.call('HGET', tally, value) or 0) + 1
redis.call('HSET', tally, value, support)
leading = math.max(leading, support)
redis.call('HSET', ballot, 'vote_count', count, 'leading', leading)
local said_bytes = redis.call('HINCRBY', ballot, 'said', #id + #value)

if support >= quorum then
  status = 'decided'
  is[8] = value
  redis.call('HSET', ballot, 'value', value)
elseif leading + members - count < quorum then
  status = 'deadlocked'
end
if status == 'open' then
  if count == 1 then keep_until(tonumber(is[7])) end
  return answer('state', 1)
end

redis.call('HSET', ballot, 'status', status, 'ended_at', whole(now), 'kept_until', whole(now + kept))
keep_until(now + kept)
redis.call('ZREM', open, decision)
redis.call('ZADD', all_kept, 'XX', whole(now + kept), members .. ' ' .. decision)
local pairs_told = 4
local data = cmsgpack.pack('decision', decision, 'vote_count', count, 'quorum', quorum,
  'electorate', members)
if status == 'decided' then
  -- The value is MessagePack already.
  pairs_told = pairs_told + 1
  data = data .. cmsgpack.pack('value') .. value
end
local parts, bytes = {}, 0
local said_by = said_bytes <= told_at_most and redis.call('HGETALL', votes) or {}
for at = 1, #said_by, 2 do
  parts[#parts + 1] = cmsgpack.pack(said_by[at]) .. said_by[at + 1]
  bytes = bytes + #parts[#parts]
end
if #said_by > 0 and bytes <= told_at_most then
  pairs_told = pairs_told + 1
  data = data .. cmsgpack.pack('votes') .. map_of(#parts) .. table.concat(parts)
end
data = map_of(pairs_told) .. data
redis.call('XADD', broadcast, '*', 'type', 'quorum.' .. status, 'time', whole(now), 'data', data)
return answer('state', 1)
