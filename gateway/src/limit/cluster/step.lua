-- One step over all keys of a request: window and bucket of each judged by this server's clock, then charged to
-- all or to none. KEYS: one for each rule. ARGV: for each rule seven numbers, see `step.rs`, which reads the reply.
--
-- A key holds five numbers: the window's number, the count of it and of the one before, the bucket's debt in
-- nanoseconds, and when that was, in microseconds. Every product stays below 2^53, where Lua's numbers are exact.

local time = redis.call('TIME')
local clock = time[1] * 1000000 + time[2]
local judged, refused = {}, false

for n, key in ipairs(KEYS) do
    local function argument(which) return tonumber(ARGV[(n - 1) * 7 + which]) end
    local want, enforced, limit, period = argument(1), argument(2) == 1, argument(3), argument(4)
    local tick, cost, tolerance = argument(5), argument(6), argument(7)

    local number, current, previous, debt, seen = 0, 0, 0, 0, 0
    local state = redis.call('GET', key)
    if state then
        local words = string.gmatch(state, '%d+')
        number, current, previous = tonumber(words()), tonumber(words()), tonumber(words())
        debt, seen = tonumber(words()), tonumber(words())
    end

    -- A clock behind the one that counted before, as after a fail-over, stands still until it has caught up.
    local now = math.max(clock, seen)
    local elapsed = now % period
    local window = (now - elapsed) / period
    if window == number + 1 then
        previous, current = current, 0
    elseif window ~= number then
        previous, current = 0, 0
    end

    -- previous * to_come / ticks, rounded up: the part of the window before that still counts.
    local ticks, to_come = math.floor(period / tick), math.ceil((period - elapsed) / tick)
    local share = previous * to_come
    local rest = math.fmod(share, ticks)
    local spent = current + (share - rest) / ticks + (rest > 0 and 1 or 0)
    local left, part, pause = math.max(limit - spent, 0), 0, period - elapsed
    if left == 0 then
        local room = limit - 1 - current
        if room >= 0 then
            pause = to_come - math.floor(room * ticks / previous)
        else
            pause = to_come + ticks - math.floor((limit - 1) * ticks / current)
        end
        pause = math.max(pause, 1) * tick
    end

    if tolerance > 0 then
        debt = math.max(0, debt - (now - seen) * 1000)
        local held = math.max(0, math.floor((tolerance - debt) / cost))
        if held == 0 then
            local wait = math.ceil((debt + cost - tolerance) / 1000)
            if left > 0 or wait > pause then part, pause = 1, wait end
            left = 0
        elseif held < left then
            left, part = held, 1
        end
    end

    local granted = math.min(want, left)
    if granted == 0 and enforced then refused = true end
    -- What is granted fills the bucket later by as much.
    if part == 1 and granted > 0 then pause = math.ceil((debt + granted * cost) / 1000) end
    judged[n] = {
        key = key, granted = granted, left = left, part = part, pause = pause, ends = period - elapsed,
        window = window, current = current, previous = previous, debt = debt, cost = cost, now = now, period = period,
    }
end

local reply = {}
for _, rule in ipairs(judged) do
    if refused then rule.granted = 0 end
    local granted = rule.granted
    if granted > 0 then
        local state = string.format(
            '%.0f %.0f %.0f %.0f %.0f',
            rule.window, rule.current + granted, rule.previous, rule.debt + granted * rule.cost, rule.now
        )
        -- Two periods after its last request a key owes nothing.
        redis.call('SET', rule.key, state, 'PX', string.format('%.0f', 2 * rule.period / 1000))
    end
    local numbers = { granted, rule.left - granted, rule.part, rule.pause, rule.ends, rule.window }
    for _, number in ipairs(numbers) do reply[#reply + 1] = number end
end
return reply
