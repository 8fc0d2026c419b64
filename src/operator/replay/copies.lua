-- Publishes copies of entries of a stream. Put before the scripts that do.

-- In KEYS after `key`: the marker of each entry. In ARGV from `at` on: the number of entries, then for each its id, the
-- number of words, the names and values of the copy's fields.
--
-- Only what was not copied within the window: the copy enters the stream, and a marker remembers for `ttl` milliseconds
-- which run made it. With `force` only what this run copied is left alone. Returns {error, then for each entry the id of
-- its copy, '' for one that was copied already}, and the ids of those that were copied. After an error nothing more is.
-- The stream must be there: it is not made for copies of what was in it.
local function copy_entries(stream, run, ttl, force, key, at)
  local count = tonumber(ARGV[at])
  local answer, moved = { '' }, {}
  at = at + 1
  for number = 1, count do
    local id, words, marker = ARGV[at], tonumber(ARGV[at + 1]), KEYS[key + number]
    local by = redis.call('GET', marker)
    local added = ''
    if not by or (force and by ~= run) then
      added = redis.pcall('XADD', stream, 'NOMKSTREAM', '*', unpack(ARGV, at + 2, at + 1 + words))
      if not added then
        answer[1] = 'NOSTREAM ' .. stream .. ' is not there'
        break
      end
      if type(added) == 'table' and added.err then
        answer[1] = added.err
        break
      end
      redis.call('SET', marker, run, 'PX', ttl)
      moved[#moved + 1] = id
    end
    answer[#answer + 1] = added
    at = at + 2 + words
  end
  return answer, moved
end
