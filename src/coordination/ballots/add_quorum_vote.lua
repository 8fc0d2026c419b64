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
local ballot, electorate, votes, tally, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[11]
local decision, id, value, role = unpack(ARGV, 1, 4)
local kept = tonumber(ARGV[6])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

if redis.call('EXISTS', ballot) == 0 then
  local refused, asked = open_ballot(KEYS, KEYS[12], ARGV, 'open', 'hybrid', now)
  if refused then return {refused, 0, '', 0, 0, asked, false, ''} end
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
  if count == 1 then keep_ballot_until(KEYS, tonumber(is[7])) end
  return answer('state', 1)
end

end_ballot(KEYS, decision, status, is[8], {votes = count, quorum = quorum, electorate = members,
  said = said_bytes}, kept, now)
return answer('state', 1)
